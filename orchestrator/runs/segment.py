"""Segment: a part of a pretraining, a run of its own, that begins with the weights and optimiser of another's end."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from data.files import is_file, join, locate, reaching, read_bytes
from data.shards.writer import write_atomically
from orchestrator.runs.run import RESULT
from orchestrator.training.resume import STATE, DamageError, read


@dataclass(frozen=True)
class Segment:
    """A pretraining of one stage from a step of its budget up to another, by the rates of the whole budget.

    source  the key of the pretraining whose last checkpoint it begins with; None for one that begins at step 0
    """

    until: int
    begin: int = 0
    source: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its result beside the experiment: the source's key stands for all that came before."""
        return asdict(self)


def end_of(folder: Path) -> str:
    """Return the address of the checkpoint that a pretraining ended with; raise ValueError if there is none."""
    if not (folder / RESULT).exists():
        raise ValueError(f"{folder.name} has not ended; a segment goes on from the end of a finished pretraining")
    recorded = json.loads((folder / RESULT).read_text())["encoder"]
    try:
        return read(recorded if "://" in recorded else str(folder / recorded)).uri
    except DamageError as damage:
        raise ValueError(
            f"{folder.name}: {damage}, and a segment goes on from there; put its files back, or delete the run's "
            "folder, and it is trained again"
        ) from None


def hand_over(source: str, target: str) -> None:
    """Copy a checkpoint, with its optimiser, to where a stage looks for its own.

    The copy does not count before it is whole, and holds no steps: they are in the history of the run that took them.
    """
    found = read(source)
    copy = join(target, found.name)
    if is_file(join(copy, STATE)):
        return
    (whence, path), (whither, folder) = locate(source), locate(copy)
    card = json.loads(read_bytes(join(source, STATE)))
    with reaching(copy):
        whither.create_dir(folder, recursive=True)
        for name in card["files"]:
            fs.copy_files(
                f"{path}/{name}", f"{folder}/{name}", source_filesystem=whence, destination_filesystem=whither
            )
    write_atomically(join(copy, STATE), json.dumps({**card, "history": []}))
