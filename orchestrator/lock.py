"""Claim: let one process at a time work in a folder.

Two trials of a sweep or a table may ask for the same training, such as one pretraining under two learning rates of
the fine-tuning. The second waits and then finds it done. A command that is started twice waits in the same way.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator import stop

LOCK = "lock"
LOOK_EVERY_S = 0.5


@contextmanager
def claimed(folder: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Wait until the folder is free, and hold it while the body runs; a process that dies releases it.

    Raises StoppedError if this process was asked to end its trainings while it waited.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if not _locked(file.fileno()):
            say(f"{folder.name} is being run by another process; waiting until it ends")
            _wait(file.fileno(), folder)
        yield


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process or thread at a time run the body, which must be short; ``path`` is the file to lock."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_free(folder: Path) -> bool:
    """Return whether a folder is free."""
    if not (folder / LOCK).exists():
        return True
    with (folder / LOCK).open("w") as file:
        return _locked(file.fileno())


def _wait(descriptor: int, folder: Path) -> None:
    while not _locked(descriptor):
        if stop.requested():
            raise stop.StoppedError(f"{folder.name}: stopped while another process ran it, as asked")
        time.sleep(LOOK_EVERY_S)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
