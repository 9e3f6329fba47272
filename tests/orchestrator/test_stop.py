"""Requests to stop: taken from signals, and carried to a stage's storage."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import stop
from tests.waiting import HEARING


@pytest.fixture(autouse=True)
def hearing() -> Iterator[None]:
    """Hear the signals, though whoever runs the tests was started to ignore some; leave no request behind."""
    before = [signal.signal(number, signal.SIG_DFL) for number in stop.SIGNALS]
    yield
    stop.withdraw()
    for number, handler in zip(stop.SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_a_request_while_something_trains_and_nobody_elses_business_after(
    number: signal.Signals, code: int
) -> None:
    before = [signal.getsignal(each) for each in stop.SIGNALS]
    with stop.awaited():
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.exit_code() == code
    assert [signal.getsignal(each) for each in stop.SIGNALS] == before


def test_ctrl_c_once_more_ends_at_once_as_soon_as_the_training_looks_and_a_third_time_without_that() -> None:
    with stop.awaited():
        os.kill(os.getpid(), signal.SIGINT)
        stop.raise_if_insisted()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(stop.Interruption):
            stop.raise_if_insisted()
        with pytest.raises(stop.Interruption):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.exit_code() == 130


def test_sigterm_after_a_request_asks_for_nothing_more() -> None:
    with stop.awaited():
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        stop.raise_if_insisted()
    assert stop.exit_code() == 129


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_signal_ends_at_once_what_does_not_train(number: signal.Signals) -> None:
    with stop.heard(), pytest.raises(stop.Interruption):
        os.kill(os.getpid(), number)


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.heard():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_command_whose_terminal_is_closed_ends_with_its_own_exit_code() -> None:
    """A write to a terminal that is gone fails; the process has a terminal of its own, which this test closes."""
    program = (
        "import fcntl, sys, termios, time; from orchestrator import stop\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "with stop.awaited():\n"
        "    print('ready', flush=True)\n"
        "    while not stop.requested(): time.sleep(0.01)\n"
        "    print('saved', flush=True)\n"
        "sys.exit(stop.exit_code())"
    )
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [*HEARING, sys.executable, "-c", program], stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    )
    os.close(inside)
    assert os.read(terminal, 100).startswith(b"ready")
    os.close(terminal)
    assert process.wait(60) == 129


def test_a_stage_is_marked_with_the_first_reason_until_it_is_started_again(tmp_path: Path) -> None:
    storage = str(tmp_path / "checkpoints" / "pretrain")
    assert stop.marked(storage) == ""
    stop.mark(storage, "pruned")
    stop.mark(storage)
    assert stop.marked(storage) == "pruned"
    stop.unmark(storage)
    stop.unmark(storage)
    assert stop.marked(storage) == ""
    stop.mark(storage)
    assert stop.marked(storage) == "stopped"


@pytest.mark.slow
def test_a_job_hears_that_its_folder_is_marked_and_is_looked_after_until_it_has_ended(tmp_path: Path) -> None:
    looks = list[bool]()

    def job() -> str:
        stop.mark(str(tmp_path))
        deadline = time.monotonic() + 60
        while not stop.requested():
            assert time.monotonic() < deadline, "never asked to end"
            time.sleep(0.01)
        over.set()
        return "saved"

    over = threading.Event()
    assert stop.heeding(str(tmp_path), job, lambda: looks.append(over.is_set())).result() == "saved"
    assert (looks[0], looks[-1]) == (False, True)
