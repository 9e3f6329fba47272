"""Stop: end trainings early without killing anything, so that they can go on later from where they stopped.

A request concerns every training that this process runs. ``launch`` carries it to the workers as a marker file in the
stage's storage, which every node reaches; they save a checkpoint at their next report and end the normal way.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyarrow import fs

from data.files import is_file, join, locate

MARKER = "stop"

_requested = threading.Event()


class StoppedError(RuntimeError):
    """A training that ended early because it was asked to; the message says how far it came."""


def request() -> None:
    """Ask every training that this process runs, or starts later, to save a checkpoint and end."""
    _requested.set()


def withdraw() -> None:
    """Forget a request: what this process runs next was not asked to end."""
    _requested.clear()


def requested() -> bool:
    """Tell whether trainings were asked to end."""
    return _requested.is_set()


@contextmanager
def on_sigterm() -> Iterator[None]:
    """Take SIGTERM, which `ray job stop` sends, as a request while the body runs in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: request())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def mark(storage: str) -> None:
    """Carry a request to the workers of a stage with this storage."""
    filesystem, path = locate(join(storage, MARKER))
    if isinstance(filesystem, fs.LocalFileSystem):
        filesystem.create_dir(locate(storage)[1])
    with filesystem.open_output_stream(path):
        pass


def unmark(storage: str) -> None:
    """Remove the request that ended an earlier training of a stage."""
    if marked(storage):
        filesystem, path = locate(join(storage, MARKER))
        filesystem.delete_file(path)


def marked(storage: str) -> bool:
    """Tell whether a stage was asked to end."""
    return is_file(join(storage, MARKER))
