"""Claim: let one process at a time work in a folder.

Two trials of a sweep or a table may ask for the same training, such as one pretraining under two learning rates of
the fine-tuning. The second waits and then finds it done. A command that is started twice waits in the same way.
The kernel releases the lock of a process that dies; where a file system has no such locks, taking one is an OSError.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator import stop

LOCK = "lock"
LOOK_EVERY_S = 0.5


@contextmanager
def claimed(folder: Path, say: Callable[[str], None] = lambda text: None) -> Generator[None]:
    """Wait until the folder is free, and hold it while the body runs; a process that dies releases it.

    Raises StoppedError if this process was asked to end its trainings while it waited, and RuntimeError where it
    would wait for itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder / LOCK)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        say(f"{folder.name} is being run by another process; waiting until it ends")
        held = _wait(lock, folder)
    with held:
        yield


@contextmanager
def alone(path: Path) -> Generator[None]:
    """Let one process or thread at a time run the body, which must be short; ``path`` is the file to lock."""
    with _lock(path):
        yield


def is_free(folder: Path) -> bool:
    """Return whether a folder is free."""
    if not (folder / LOCK).exists():
        return True
    try:
        with _lock(folder / LOCK).acquire(blocking=False):
            return True
    except Timeout:
        return False


def _wait(lock: FileLock, folder: Path) -> AbstractContextManager[object]:
    try:
        return lock.acquire(poll_interval=LOOK_EVERY_S, cancel_check=stop.requested)
    except Timeout:
        raise stop.StoppedError(f"{folder.name}: stopped while another process ran it, as asked") from None


def _lock(path: Path) -> FileLock:
    # The fallback, a file that says whose it is, would outlive a process that is killed.
    return FileLock(path, fallback_to_soft=False)
