"""Claims: which rows are better than a reference, and which is the best, as far as runs and cases can tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from orchestrator.direction import Direction, best
from orchestrator.judging.case_scores import CaseScores
from orchestrator.results.paired import RunScores, crossed
from orchestrator.results.statistics import Comparison, welch

ALPHA = 0.05
K = TypeVar("K")


@dataclass(frozen=True)
class RowScores:
    """A row's repeats: the metric of each, and behind it the score of each patient where these are known."""

    values: Sequence[float]
    patients: Sequence[Mapping[str, float] | None] = ()


def against(ours: RowScores, theirs: RowScores) -> Comparison:
    """Compare a row with another, over runs and patients where all runs were judged by the same patients.

    Else over runs by Welch's t-test, which says nothing of other patients.
    """
    found = shared_cases([ours, theirs])
    if found is None or (tested := crossed(*found)) is None:
        return welch(ours.values, theirs.values)
    return replace(tested, num_cases=found[0].shape[1])


def shared_cases(rows: Sequence[RowScores]) -> list[RunScores] | None:
    """Return each row's scores of the patients; None unless all runs of all rows have the same two or more."""
    runs = [run for row in rows for run in row.patients]
    if not runs or any(not row.patients for row in rows) or None in runs:
        return None
    known = [sorted(run or {}) for run in runs]
    if len(known[0]) < 2 or any(names != known[0] for names in known):
        return None
    return [np.array([[(run or {})[name] for name in known[0]] for run in row.patients]) for row in rows]


def joined(folds: Sequence[CaseScores | None]) -> CaseScores | None:
    """Return the scores of the patients of all folds of a repeat, whose mean is the mean over the folds."""
    found: CaseScores = {}
    num_patients = sum(len(fold or {}) for fold in folds)
    for fold in folds:
        if not fold:
            return None
        share = num_patients / (len(folds) * len(fold))
        found |= {patient: share * score for patient, score in fold.items()}
    return found


def corrected(comparisons: Mapping[K, Comparison | None]) -> dict[K, Comparison | None]:
    """Return comparisons with their p's corrected for being several (Holm, Scand. J. Statist. 6, 1979)."""
    tested = {key: one.p for key, one in comparisons.items() if one is not None and one.p is not None}
    held = dict(zip(tested, holm([*tested.values()]), strict=True))
    return {
        key: replace(one, corrected=held[key]) if one and key in held else one for key, one in comparisons.items()
    }


def holm(p: Sequence[float]) -> list[float]:
    """Return p's, each multiplied by how many are not below it, and never below a smaller one's.

    As statsmodels' ``multipletests`` has it, which takes a second to import and passes over all memory at each call.
    """
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return raised[np.argsort(order, kind="stable")].tolist()


@dataclass(frozen=True)
class Best:
    """The row with the best mean, and those rows that cannot be told from it; it is the best where there are none."""

    row: int
    alike: tuple[int, ...]


def best_of(rows: Sequence[RowScores], direction: Direction | None) -> Best | None:
    """Find the row with the best mean and test it against each other row that ran; None where none can be best."""
    means = [float(np.mean(row.values)) if row.values else None for row in rows]
    leader = best(means, direction)
    others = [place for place, mean in enumerate(means) if mean is not None and place != leader]
    if leader is None or not others:
        return None
    tested = corrected({place: against(rows[leader], rows[place]) for place in others})
    alike = [place for place, one in tested.items() if one is None or one.corrected is None or one.corrected >= ALPHA]
    return Best(leader, tuple(alike))
