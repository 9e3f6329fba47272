"""A disk that is full in the middle of a training: a small disk that is filled, or files that cannot grow further.

Run as a module, it trains an experiment, fills its home, and trains again once there is room; it prints what it saw.
"""

import errno
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from orchestrator.history import steps
from tests.points import assert_points_equal_history
from tests.waiting import wait_for_step

SIZE = "12m"
_MOUNT = f'mount -t tmpfs -o size={SIZE} tmpfs "$1" && shift && exec "$@"'


class Seen(NamedTuple):
    """How the training ended on the full disk, which steps its history then had, and which in the end."""

    exit_code: int
    said: str
    reason: str
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]


def train_on_full_disk(file: Path, home: Path, full_after_step: int, timeout: float) -> Seen:
    """Run this module, on a disk of its own where the system lets a process mount one."""
    home.mkdir(parents=True)
    disk = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(home)]
    mounts = subprocess.run([*disk, "true"], capture_output=True, check=False).returncode == 0
    command = [*(disk if mounts else []), sys.executable, "-m", "tests.full_disk"]
    arguments = [str(file), str(home), str(full_after_step), "fill" if mounts else "limit"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return Seen(*json.loads(done.stdout.splitlines()[-1]))


def _train(file: str, home: Path, full_after_step: int, how: str) -> Seen:
    command = [sys.executable, "-m", "orchestrator.cli", "pretrain", file]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    history = wait_for_step(home, full_after_step, job)
    ballast = home / "ballast"
    if how == "fill":
        _fill(ballast)
    else:
        _limit(job, history.stat().st_size)
    said = job.communicate()[1]
    before = steps(history.parent, "pretrain")
    ballast.unlink(missing_ok=True)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert_points_equal_history(history.parent)
    reason = os.strerror(errno.ENOSPC if how == "fill" else errno.EFBIG)
    return Seen(job.returncode, said, reason, before, steps(history.parent, "pretrain"))


def _fill(ballast: Path) -> None:
    """Write until the disk takes no more."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(2**16)):
            pass


def _limit(job: subprocess.Popen[str], size: int) -> None:
    """Let no file of a job's Python processes grow beyond a size; Ray's own programs would be killed for trying."""
    driver = psutil.Process(job.pid)
    actors = [process for process in driver.children(recursive=True) if process.name().startswith("ray::")]
    for process in [driver, *actors]:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


if __name__ == "__main__":
    print(json.dumps(_train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
