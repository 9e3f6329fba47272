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
    """What a command took: seconds, and the peak of its processes' summed proportional memory in MB.

    cpu_s   what its processes computed, up to the last look at each
    """

    seconds: float
    peak_mb: float
    cpu_s: float


def cost_of(arguments: Sequence[str], log: Path, look_every_s: float = LOOK_EVERY_S) -> Cost:
    """Run a raydiology command and return what it took; each look at its processes computes, too."""
    began = time.monotonic()
    with log.open("wb") as sink:
        command = [sys.executable, "-c", _MAIN, *arguments]
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=_environment())
        watched, peak, computed = psutil.Process(process.pid), 0, dict[int, float]()
        while process.poll() is None:
            peak = max(peak, _proportional_bytes(watched, computed))
            time.sleep(look_every_s)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise BenchError(f"`raydiology {' '.join(arguments)}` ended with {process.returncode}: {last}; see {log}")
    return Cost(seconds, peak / 1e6, sum(computed.values()))


def _environment() -> dict[str, str]:
    """Return the environment without this process's cluster: the command starts a cluster of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def _proportional_bytes(root: psutil.Process, computed: dict[int, float]) -> int:
    """Return the processes' memory; note in ``computed`` what each of them has computed, in seconds."""
    total = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
            times = process.cpu_times()
            computed[process.pid] = times.user + times.system
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total
