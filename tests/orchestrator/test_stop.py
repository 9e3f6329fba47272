"""Requests to stop: taken from SIGTERM, and carried to a stage's storage."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import stop


@pytest.fixture(autouse=True)
def nothing_requested() -> Iterator[None]:
    yield
    stop.withdraw()


def test_sigterm_is_a_request_while_a_training_runs_and_nobody_elses_business_after() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop.on_sigterm():
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stage_is_marked_until_it_is_started_again(tmp_path: Path) -> None:
    storage = str(tmp_path / "checkpoints" / "pretrain")
    assert not stop.marked(storage)
    stop.mark(storage)
    assert stop.marked(storage)
    stop.unmark(storage)
    stop.unmark(storage)
    assert not stop.marked(storage)
