"""Savings: what a sweep did not train, because it ended trials early."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.runs.work import HOUR_S, TrainingWork


@dataclass(frozen=True)
class Savings:
    """What was not trained because trials were ended early.

    ended, left_out  how many trainings ended early, and how many were not begun, in words
    steps, planned             not trained, of those that all finished and ended trials planned
    hours, planned_hours       the same in hours of training; None where nothing was trained to tell the speed
    """

    ended: str
    left_out: str
    steps: int
    planned: int
    hours: float | None
    planned_hours: float | None


def savings(trials: Sequence[tuple[bool, Sequence[TrainingWork]]]) -> Savings | None:
    """Return what was saved, from each trial's word whether it was ended early, and its work; None for nothing.

    The time of steps that were not trained is told by the speed of the training's own steps, or, where it has none,
    by that of the same kind of training in the other trials.
    """
    early = [work for ended, own in trials if ended for work in own]
    left = [work for work in early if work.steps < work.planned]
    if not left:
        return None
    everything = [work for _, own in trials for work in own]
    paces = {kind: _pace([work for work in everything if work.kind == kind]) for kind in ("pretrain", "finetune")}
    hours = [_hours_left(work, paces[work.kind]) for work in everything]
    known = [one for one in hours if one is not None]
    spared = [one for work in left if (one := _hours_left(work, paces[work.kind])) is not None]
    done = sum(work.hours for work in everything)
    return Savings(
        ended=_counted([work for work in left if work.steps]),
        left_out=_counted([work for work in left if not work.steps]),
        steps=sum(work.planned - work.steps for work in left),
        planned=sum(work.planned for work in everything),
        hours=sum(spared) if len(spared) == len(left) else None,
        planned_hours=done + sum(known) if len(known) == len(hours) else None,
    )


def _counted(works: Sequence[TrainingWork]) -> str:
    """Count trainings in words."""
    names = {"pretrain": "pretraining", "finetune": "fine-tuning"}
    counts = {name: sum(work.kind == kind for work in works) for kind, name in names.items()}
    return " and ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)


def _pace(works: Sequence[TrainingWork]) -> float | None:
    """Return the hours of a step."""
    steps = sum(work.steps for work in works)
    return sum(work.hours for work in works) / steps if steps else None


def _hours_left(work: TrainingWork, usual: float | None) -> float | None:
    """Return the hours that the rest of a training would have taken."""
    if work.steps == work.planned:
        return 0.0
    pace = work.hours / work.steps if work.steps else usual
    return None if pace is None else pace * (work.planned - work.steps)


def saved_words(found: Savings, by: str) -> str:
    """Say in a sentence what ending trials early has saved."""
    parts = [f"ended {found.ended} early"] if found.ended else []
    parts += [f"left out {found.left_out}"] if found.left_out else []
    share = found.steps / found.planned
    said = f"{found.steps:,} of {found.planned:,} planned steps ({share:.0%}) were not trained"
    if found.hours is not None and found.planned_hours is not None:
        said += f", about {_duration(found.hours)} of {_duration(found.planned_hours)}"
    return f"{by} {' and '.join(parts)}: {said}"


def _duration(hours: float) -> str:
    """Write worker-hours, in minutes or seconds where they are few."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    seconds = hours * HOUR_S
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
