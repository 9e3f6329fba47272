"""Tasks: rows that several tables share, compared over the tables by their ranks (Demsar, JMLR 7, 2006)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from orchestrator.direction import Direction
from orchestrator.results.claims import ALPHA

LEAST_ROWS, LEAST_TASKS = 3, 3


@dataclass(frozen=True)
class TaskRanks:
    """Rows over tasks.

    means         each row's mean score in each task
    ranks         each row's mean rank over the tasks, the best is 1; equal means share their places
    friedman_p    of equal ranks of all rows
    p             of equal ranks of two rows (Nemenyi), by row and row
    critical      the difference of mean ranks from which two rows are told apart at 0.05
    """

    tasks: tuple[str, ...]
    means: Mapping[str, tuple[float, ...]]
    ranks: Mapping[str, float]
    friedman_p: float
    p: pd.DataFrame
    critical: float

    @property
    def alike(self) -> dict[str, list[str]]:
        """The rows that cannot be told from each row."""
        return {
            row: [other for other in self.ranks if other != row and self.p.loc[row, other] >= ALPHA]
            for row in self.ranks
        }


def task_ranks(
    tasks: Sequence[str], means: Sequence[Mapping[str, float]], directions: Sequence[Direction | None]
) -> TaskRanks | None:
    """Rank the rows that have a mean in each task; None for fewer than three of them, or of tasks."""
    names = [name for name in (means[0] if means else {}) if all(name in own for own in means)]
    if len(names) < LEAST_ROWS or len(tasks) < LEAST_TASKS or None in directions:
        return None
    signs = np.array([-1 if direction == "max" else 1 for direction in directions])
    table = np.array([[own[name] for name in names] for own in means])
    places = stats.rankdata(signs[:, None] * table, axis=1)
    order = np.argsort(places.mean(0), kind="stable")
    return TaskRanks(
        tasks=tuple(tasks),
        means={names[row]: tuple(table[:, row].tolist()) for row in order},
        ranks={names[row]: float(places[:, row].mean()) for row in order},
        friedman_p=_friedman_p(places),
        p=_nemenyi([names[row] for row in order], places[:, order]),
        critical=critical_difference(len(names), len(tasks)),
    )


def critical_difference(num_rows: int, num_tasks: int) -> float:
    """Return the least difference of mean ranks that tells two rows apart at 0.05 (Nemenyi)."""
    studentised = float(stats.studentized_range.ppf(1 - ALPHA, num_rows, math.inf))
    return studentised / math.sqrt(2) * math.sqrt(num_rows * (num_rows + 1) / (6 * num_tasks))


def _friedman_p(places: Float[np.ndarray, "tasks rows"]) -> float:
    if (places == places[0, 0]).all():
        return 1.0
    return float(np.asarray(stats.friedmanchisquare(*places.T))[1])


def _nemenyi(names: Sequence[str], places: Float[np.ndarray, "tasks rows"]) -> pd.DataFrame:
    from scikit_posthocs import posthoc_nemenyi_friedman  # it draws with seaborn, which takes seconds to import

    found = posthoc_nemenyi_friedman(places)
    found.index = found.columns = pd.Index(names)
    return found
