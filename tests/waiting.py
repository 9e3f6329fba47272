"""Wait, up to a limit, for something that another process does, and kill the process then."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from orchestrator.history import HISTORY, Tail

Found = TypeVar("Found")
WITHIN_S, DIES_WITHIN_S, LOOK_EVERY_S = 400.0, 120.0, 0.05

# Begins a command that hears signals: whoever runs the tests may have been started to ignore some, as by nohup.
HEARING = ["env", "--default-signal=HUP,INT,TERM"]


def wait_for(look: Callable[[], Found | None], job: subprocess.Popen[Any] | None = None) -> Found:
    """Look until something is found, and return it.

    Raises TimeoutError if nothing is found in time, or while the job that should bring it runs.
    """
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline and (job is None or job.poll() is None):
        if found := look():
            return found
        time.sleep(LOOK_EVERY_S)
    raise TimeoutError(f"nothing found within {WITHIN_S:g} s, or before exit code {job.poll() if job else None}")


def wait_for_step(home: Path, step: int, job: subprocess.Popen[Any] | None = None) -> Path:
    """Wait until a run below ``home`` has reported a step; return its history."""

    def look() -> Path | None:
        paths = home.glob(f"**/{HISTORY}")
        return next((path for path in paths if _last_step(path) >= step), None)

    return wait_for(look, job)


def kill_tree(job: subprocess.Popen[Any]) -> None:
    """Kill a job that has not ended with all processes that it started, as a machine that loses power does."""
    if job.poll() is not None:
        return
    for process in [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    job.wait(DIES_WITHIN_S)


def _last_step(history: Path) -> int:
    return max((entry.get("step", -1) for entry in Tail(history).read()), default=-1)
