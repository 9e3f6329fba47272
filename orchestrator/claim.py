"""Claim: one process at a time in a run's folder.

Two trials of a sweep may ask for the same training, such as one pretraining under two learning rates of the
fine-tuning. The second waits, and finds it done.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator import stop

LOCK = "lock"
LOOK_EVERY_S = 0.5


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Wait until no other process has the folder, and keep it while the body runs; a process that dies lets go.

    Raises StoppedError where this process was asked to end its trainings while it waited.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        while not _locked(file.fileno()):
            if stop.requested():
                raise stop.StoppedError(f"run {folder.name}: stopped while another trial trained it, as asked")
            time.sleep(LOOK_EVERY_S)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
