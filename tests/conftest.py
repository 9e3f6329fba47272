"""Fixtures that all tests share."""

import gc
import os
from pathlib import Path

# Before torch is imported: tiny tensors on more threads than free cores wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

gc.disable()  # until all tests are collected: what is imported stays to the end
_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def scans() -> Path:
    """The folder of real scans; tests that need it are skipped only where it is missing."""
    folder = Path(os.environ.get("RAYDIOLOGY_TEST_DATA", _BESIDE_THE_REPOSITORY))
    if not folder.is_dir():
        pytest.skip("no real scans: RAYDIOLOGY_TEST_DATA names no folder, and there is no ../shared/data")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    gc.freeze()  # nor do later collections pass over thousands of items again and again
    gc.enable()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their place: those of an archive hold the time, and two processes would disagree on them."""
    return argname if isinstance(val, bytes) else None
