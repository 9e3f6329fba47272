"""Findings: what a sweep knows of its trials beyond their runs, noted in its folder for what shows it."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from data.shards.writer import write_atomically

FILE = "findings.json"


@dataclass(frozen=True)
class TrialValues:
    """A trial's values of all that was sought, and whether it is on the Pareto front."""

    trial: str
    values: tuple[float, ...]
    leads: bool


@dataclass(frozen=True)
class MemberCopy:
    """A member of a population that took another member's weights and optimiser after so many steps."""

    step: int
    member: int
    source: int


@dataclass(frozen=True)
class MemberCourse:
    """A member of a population: the objective and the fields' numbers at the end of each segment, by steps done."""

    number: int
    values: dict[int, float]
    fields: dict[str, dict[int, float]]


@dataclass(frozen=True)
class SweepFindings:
    """What a sweep has found.

    answer   which trial is best, or which are on the front, in a sentence
    notes    further sentences, such as what was saved by ending trials early
    shown    the values of trials as they are shown, where that is more than a mean, by the trial's name
    sought   the names of several objectives, and ``trials`` their values
    members, copies  of a population, in the order of its members and of time
    """

    answer: str = ""
    notes: tuple[str, ...] = ()
    shown: dict[str, str] | None = None
    sought: tuple[str, ...] = ()
    trials: tuple[TrialValues, ...] = ()
    members: tuple[MemberCourse, ...] = ()
    copies: tuple[MemberCopy, ...] = ()


def note_findings(folder: Path, found: SweepFindings) -> None:
    """Note in a sweep's folder what it has found."""
    write_atomically(folder / FILE, TypeAdapter(SweepFindings).dump_json(found, indent=2))


def findings_in(folder: str | None) -> SweepFindings:
    """Return what a sweep has found; nothing where its folder does not say, or there is no sweep."""
    path = Path(folder) / FILE if folder else None
    return TypeAdapter(SweepFindings).validate_json(path.read_text()) if path and path.exists() else SweepFindings()
