"""History: every step's metrics, in one file per run that is only ever appended to.

The controller writes it; progress bar, MLflow and tests read it. After a failure the steps since the last
checkpoint are trained again and stand in the file twice: the later line counts.
"""

import json
import os
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

HISTORY = "history.jsonl"


class HistoryWriter(UserCallback):
    """Append what rank 0 reports; runs in Ray Train's controller, on the driver's node, and outlives workers."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.path = folder / HISTORY
        self.stage = stage

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Write one line per step, and one where training stopped for good."""
        lines = [{"stage": self.stage, **entry} for entry in metrics[0].get("history", [])]
        if "fatal" in metrics[0]:
            lines.append({"stage": self.stage, "fatal": metrics[0]["fatal"]})
        append(self.path, lines)


def append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Append JSON lines and wait until they are on the disk."""
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


class Tail:
    """Reads the complete lines of a growing file, each once."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def read(self) -> list[dict[str, Any]]:
        """Return the lines that were completed since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self.offset += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


def steps(folder: Path, stage: str) -> list[dict[str, Any]]:
    """Return a stage's steps in order, the last line of each."""
    entries = [line for line in Tail(folder / HISTORY).read() if line["stage"] == stage and "step" in line]
    return [entry for _, entry in sorted({entry["step"]: entry for entry in entries}.items())]
