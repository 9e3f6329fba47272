"""Claims: one process at a time works in a folder, and a process that died does not keep it."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator import stop
from orchestrator.lock import LOCK, alone, claimed, is_free

HOLD = """
import pathlib, sys
from orchestrator.lock import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Let another process hold the folder while the body runs, then kill it with SIGKILL."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        yield
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.slow
def test_a_folder_is_one_process_s_until_it_dies(tmp_path: Path) -> None:
    said, entered = [], threading.Event()

    def enter() -> None:
        with claimed(tmp_path, said.append):
            entered.set()

    with holding(tmp_path):
        waiting = threading.Thread(target=enter, daemon=True)
        waiting.start()
        assert not entered.wait(1.0)
        assert said == [f"{tmp_path.name} is being run by another process; waiting until it ends"]
    assert entered.wait(5.0)


@pytest.mark.slow
def test_a_process_that_is_asked_to_stop_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "requested", lambda: True)
    with (
        holding(tmp_path),
        pytest.raises(stop.StoppedError, match="stopped while another process ran it"),
        claimed(tmp_path),
    ):
        pass


def test_a_thread_that_would_wait_for_itself_is_told_so(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(RuntimeError, match="already held"), claimed(tmp_path):
        pass
    assert is_free(tmp_path)


def test_a_folder_is_free_unless_a_process_holds_it(tmp_path: Path) -> None:
    assert is_free(tmp_path)
    with holding(tmp_path):
        assert not is_free(tmp_path)
    assert is_free(tmp_path)
    assert (tmp_path / LOCK).exists()


@pytest.mark.slow
def test_a_second_thread_waits_until_the_first_is_done_alone(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with alone(tmp_path / "lock"):
            order.append("second")

    with alone(tmp_path / "lock"):
        waiting = threading.Thread(target=second, daemon=True)
        waiting.start()
        waiting.join(0.5)
        order.append("first")
    waiting.join(5.0)
    assert order == ["first", "second"]
