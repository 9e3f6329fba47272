"""Cost of a command: its time, and the peak memory of all its processes, counting shared memory once."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_EVERY_S = 0.25
_MAIN = "import sys; from orchestrator.cli import main; sys.exit(main())"


class BenchError(RuntimeError):
    """A command of the benchmark has failed."""


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds, and the peak of its processes' summed proportional memory in MB."""

    seconds: float
    peak_mb: float


def cost_of(arguments: Sequence[str], log: Path) -> Cost:
    """Run a raydiology command and return what it took."""
    began = time.monotonic()
    with log.open("wb") as sink:
        command = [sys.executable, "-c", _MAIN, *arguments]
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=_environment())
        watched, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            peak = max(peak, _proportional_bytes(watched))
            time.sleep(LOOK_EVERY_S)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise BenchError(f"`raydiology {' '.join(arguments)}` ended with {process.returncode}: {last}; see {log}")
    return Cost(seconds, peak / 1e6)


def _environment() -> dict[str, str]:
    """Return the environment without this process's cluster: the command starts a cluster of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def _proportional_bytes(root: psutil.Process) -> int:
    total = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total
