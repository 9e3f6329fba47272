"""Usual: by what a table or a sweep is judged, which what shows it takes where it is asked for nothing else."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from data.shards.writer import write_atomically

FILE = "judged_by.json"


@dataclass(frozen=True)
class JudgedBy:
    """By what a table or a sweep is judged.

    also    further metrics
    over    the field over which the metric is drawn, if there is one, with its ``points``: line, value, row
    again   the command that runs it again
    """

    metric: str
    also: tuple[str, ...] = ()
    reference: str | None = None
    over: str | None = None
    points: tuple[tuple[str, float, str], ...] = ()
    again: str = ""


def note(folder: Path, judged: JudgedBy) -> None:
    """Note in its folder by what a table or a sweep is judged."""
    write_atomically(folder / FILE, TypeAdapter(JudgedBy).dump_json(judged, indent=2))


def noted(folder: Path) -> JudgedBy | None:
    """Return by what a table or a sweep is judged; None where its folder does not say."""
    path = folder / FILE
    return TypeAdapter(JudgedBy).validate_json(path.read_text()) if path.exists() else None
