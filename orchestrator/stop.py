"""Stop: end trainings early without killing them, so that they can later continue from where they stopped.

Ctrl-C, SIGTERM (Slurm, systemd, `ray job stop`) and SIGHUP (a terminal that is closed) ask for it. While something
trains, the first of these signals is a request to every training of this process. A second Ctrl-C ends at once. While
nothing trains there is nothing to save, and the first signal ends at once.

A request reaches other processes as a marker, a file with the reason in a folder that both know. A pool marks the
folders of its jobs (``runs/pool.py``), and their processes make the request their own (``heeding``). ``launch`` marks
a stage's storage, which every node reaches, and the workers save a checkpoint at their next report and end normally.
"""

import os
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import Literal, TypeVar

from pyarrow import fs

from data.files import is_file, join, locate, read_bytes

MARKER = "stop"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STANDARD_STREAMS = (0, 1, 2)
LOOK_EVERY_S = 0.5

Reason = Literal["stopped", "pruned"]
Result = TypeVar("Result")


class StoppedError(RuntimeError):
    """A training that ended early because it was asked to; the message says how far it got."""


class RunError(RuntimeError):
    """A run that ended without its result; the message says why."""


class Interruption(KeyboardInterrupt):
    """A signal that ends the command at once."""


class _Request:
    """The request to this process, its signal, and whether anything checks for it."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.signal = signal.SIGINT
        self.insisted = 0
        self.awaited = 0


_request = _Request()


def request(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask every training that this process runs or will start to save a checkpoint and end."""
    if not requested():
        _request.signal = by
        _request.asked.set()


def withdraw() -> None:
    """Forget a request, so that it does not end the next training of this process."""
    _request.asked.clear()
    _request.insisted = 0


def requested() -> bool:
    """Return whether trainings were asked to end."""
    return _request.asked.is_set()


def asked() -> str:
    """Say that a stop was requested, and how to end at once."""
    pressed = _request.signal == signal.SIGINT
    how, again = ("Ctrl-C", "Ctrl-C once more") if pressed else (_request.signal.name, "Ctrl-C")
    return f"asked to stop ({how}): saving a checkpoint, then ending; {again} ends at once, without one"


def exit_code() -> int:
    """Return the exit code of a command that was asked to end: 128 plus the number of the signal, as in a shell."""
    return 128 + _request.signal


def raise_if_insisted() -> None:
    """Raise Interruption if Ctrl-C was pressed after the request."""
    if _request.insisted:
        raise Interruption


@contextmanager
def heard() -> Generator[None]:
    """Handle the signals that end a command while the body runs in the main thread.

    Signals that the process was started to ignore (``nohup``) stay ignored.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _hear:
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _terminal[:] = [stream for stream in STANDARD_STREAMS if os.isatty(stream)]
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def awaited() -> Generator[None]:
    """Take the first signal as a request while the body runs; the body must check for it, and for a second Ctrl-C."""
    with heard():
        _request.awaited += 1
        try:
            yield
        finally:
            _request.awaited -= 1


_terminal: list[int] = []


def _hear(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        _leave_terminal()
    first = not requested()
    request(signal.Signals(number))
    if not first and number == signal.SIGINT:
        _request.insisted += 1
    looked_for = _request.awaited and _request.insisted < 2
    if not looked_for and (first or number == signal.SIGINT):
        raise Interruption


def _leave_terminal() -> None:
    """Discard all output from now on: a write to a closed terminal fails, and would end this process at once."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in _terminal:
        os.dup2(nothing, stream)
    os.close(nothing)


def mark(folder: str, reason: Reason = "stopped") -> None:
    """Ask whatever works for a folder to end; if it was asked already, the first reason stays."""
    if marked(folder):
        return
    filesystem, path = locate(join(folder, MARKER))
    if isinstance(filesystem, fs.LocalFileSystem):
        filesystem.create_dir(locate(folder)[1])
    with filesystem.open_output_stream(path) as stream:
        stream.write(reason.encode())


def unmark(folder: str) -> None:
    """Remove the request that ended earlier work for a folder."""
    if is_file(join(folder, MARKER)):
        filesystem, path = locate(join(folder, MARKER))
        filesystem.delete_file(path)


def marked(folder: str) -> str:
    """Return the reason for which a folder's work was asked to end; nothing if it was not."""
    path = join(folder, MARKER)
    return read_bytes(path).decode() if is_file(path) else ""


def heeding(folder: str, job: Callable[[], Result], meanwhile: Callable[[], None] = lambda: None) -> Future[Result]:
    """Do a job in a thread until it ends, and request its end once its folder is marked.

    ``meanwhile`` is called at each look, the last time when the job has ended.
    """
    with ThreadPoolExecutor(1) as pool:
        doing, over = pool.submit(job), False
        while not over:
            over = bool(wait([doing], LOOK_EVERY_S).done)
            meanwhile()
            if marked(folder):
                request()
    return doing
