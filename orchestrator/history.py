"""History: every step's metrics, in one file per run that is only ever appended to.

The controller writes it; progress bar, MLflow, sweeps and tables read it. After a failure, the steps since the last
checkpoint are trained again, on the same samples from the same weights, and are in the file twice. Every reader takes
the first line of a step, so that a step keeps the value that was shown first.
"""

import fcntl
import io
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

HISTORY = "history.jsonl"
STEP, TIME = "step", "time_ms"
HELD, USAGE = "held", "usage"
BLOCK_BYTES = 2**20

logger = logging.getLogger(__name__)


class HistoryWriter(UserCallback):
    """Append what rank 0 reports; runs in Ray Train's controller, on the driver's node, and outlives workers."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.path = folder / HISTORY
        self.stage = stage

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Write one line per step, with the time of the report, and one where training stopped for good."""
        self.complete(metrics[0].get(HELD, []))
        lines = self._lines(metrics[0].get("history", []))
        if lines:
            lines[-1] |= metrics[0].get(USAGE, {})
        if "fatal" in metrics[0]:
            lines.append({"stage": self.stage, "fatal": metrics[0]["fatal"]})
        append(self.path, lines)

    def complete(self, held: list[dict[str, Any]]) -> None:
        """Write those steps of the checkpoints, in order, that the file lacks because their report was lost."""
        known = {line[STEP] for line in steps(self.path.parent, self.stage)} if held else set()
        append(self.path, self._lines([entry for entry in held if entry[STEP] not in known]))

    def _lines(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        now = int(time.time() * 1000)
        return [{"stage": self.stage, TIME: now, **entry} for entry in entries]


def append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Append JSON lines and wait until they are on the disk.

    If an earlier process was killed, or the disk was full, in the middle of a line, that line is cut off first. If
    these lines cannot be written whole, none of them is written.
    """
    data = memoryview("".join(json.dumps(line) + "\n" for line in lines).encode())
    with path.open("a+b", buffering=0) as file:
        # Every writer holds the lock, so a line that is incomplete now will never be completed.
        fcntl.flock(file, fcntl.LOCK_EX)
        end, said = _cut_torn_line(file, path)
        if said:
            logger.warning(said)
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def mend(path: Path) -> str | None:
    """Cut off the torn line that ``append`` would cut off; return a remark on it, or None."""
    if not path.exists():
        return None
    with path.open("r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return _cut_torn_line(file, path)[1]


def _cut_torn_line(file: io.FileIO, path: Path) -> tuple[int, str | None]:
    """Cut what follows the last whole line of a file; return the size that is left, and a remark."""
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
            break
    if end == size:
        return end, None
    file.truncate(end)
    return end, (
        f"{path} ended in the middle of a line, as a kill or a full disk leaves it; its last {size - end} bytes were "
        "cut off"
    )


class Tail:
    """Reads the complete lines of a growing file, each once; ``offset`` is where the next one begins."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that were completed since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                yield json.loads(line)

    def read(self) -> list[dict[str, Any]]:
        """Return the lines that were completed since the last call."""
        return list(self.lines())


@dataclass
class Once:
    """Passes each step of a run on once, numbered over all of its stages, one after the other.

    ``done`` is the number of steps of each stage that were passed on, in the order of the stages.
    """

    done: dict[str, int] = field(default_factory=dict)

    def new(self, lines: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the steps, from 0, of lines that were not passed on before, with the lines."""
        for line in lines:
            if STEP in line and line[STEP] >= self.done.get(line["stage"], 0):
                self.done[line["stage"]] = line[STEP] + 1
                yield self._before(line["stage"]) + line[STEP], line

    def _before(self, stage: str) -> int:
        """Return how many steps the earlier stages have."""
        stages = list(self.done)
        return sum(self.done[earlier] for earlier in stages[: stages.index(stage)])


def steps(folder: Path, stage: str) -> list[dict[str, Any]]:
    """Return a stage's steps in order, the first line of each."""
    return [line for _, line in Once().new(Tail(folder / HISTORY).lines()) if line["stage"] == stage]


def metrics_of(line: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a line's step."""
    return {
        name: float(value)
        for name, value in line.items()
        if name not in (STEP, TIME) and isinstance(value, int | float)
    }
