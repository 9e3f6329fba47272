"""Outbox: the records of a run that wait to be sent to MLflow, and a cursor that says how far they were sent."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.shards.writer import write_atomically
from orchestrator.history import HISTORY

OUTBOX, CURSOR = "outbox.jsonl", "sent.json"


@dataclass
class Cursor:
    """How much of a run has been sent to MLflow.

    run_id   MLflow's id, once the run has been created there
    offset   bytes of the outbox that were sent
    history  bytes of the history that were sent
    steps    steps that were sent of each stage
    """

    run_id: str | None = None
    offset: int = 0
    history: int = 0
    steps: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Cursor":
        """Return the cursor of a run's folder."""
        path = folder / CURSOR
        if not path.exists():
            return cls()
        # Version 0.1 sent a history's metrics through the outbox; they must not be sent again.
        return cls(**dict[str, Any](history=size_of(folder / HISTORY)) | json.loads(path.read_text()))

    def write(self, folder: Path) -> None:
        """Write the cursor into a run's folder."""
        write_atomically(folder / CURSOR, json.dumps(asdict(self)))


def waiting(home: Path) -> list[Path]:
    """Return the run folders that hold unsent records of a run that began."""
    folders = [path.parent for path in sorted(home.glob(f"**/{OUTBOX}"))]
    return [folder for folder in folders if _unsent(folder) and posted(folder, ("start",))]


def posted(folder: Path, ops: Sequence[str]) -> list[dict[str, Any]]:
    """Return the posted records of some kinds, in order, parsing only their lines."""
    if not (folder / OUTBOX).exists():
        return []
    begins = tuple(json.dumps({"op": op})[:-1].encode() for op in ops)
    with (folder / OUTBOX).open("rb") as file:
        return [json.loads(line) for line in file if line.startswith(begins) and line.endswith(b"\n")]


def located(folder: Path, place: str) -> Path:
    """Return the file or folder that a record of a run names."""
    return Path(os.path.normpath(folder.absolute() / place))


def _unsent(folder: Path) -> bool:
    cursor = Cursor.read(folder)
    return cursor.offset < size_of(folder / OUTBOX) or cursor.history < size_of(folder / HISTORY)


def size_of(path: Path) -> int:
    """Return a file's size in bytes; 0 if there is no file."""
    return path.stat().st_size if path.exists() else 0
