"""Row statistics: all that is computed of a table's rows, as CSV with every digit.

To the numbers of the printed table come those that are drawn: an interval, a permutation test, ranks.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from orchestrator.direction import Direction
from orchestrator.results.claims import RowScores, shared_cases
from orchestrator.results.paired import Rank, bootstrap_interval, permuted_p, ranks_of
from orchestrator.results.statistics import Comparison, Summary
from orchestrator.results.text import as_csv

HEADING = [
    "row", "runs", "patients", "mean", "deviation",
    "difference", "low", "high", "p", "p_holm", "p_false_claim", "detectable",
    "low_drawn", "high_drawn", "p_patients",
    "rank", "rank_low", "rank_high", "first",
]  # fmt: skip


@runtime_checkable
class Line(Protocol):
    """A row of a table or of a comparison."""

    @property
    def name(self) -> str: ...
    @property
    def scores(self) -> RowScores: ...
    @property
    def summary(self) -> Summary: ...
    @property
    def comparison(self) -> Comparison | None: ...


def row_statistics(lines: Sequence[Line], reference: str | None, direction: Direction | None) -> str:
    """Return one CSV line for each row that has runs; docs/explanation/statistics.md explains the columns."""
    ran = [line for line in lines if line.scores.values]
    theirs = next((line.scores for line in ran if line.name == reference), None)
    ranks = _ranks([line.scores for line in ran], direction)
    rows = []
    for line, rank in zip(ran, ranks, strict=True):
        alone = shared_cases([line.scores])
        tested = line.comparison or Comparison(None, num_cases=alone[0].shape[1] if alone else None)
        rows.append(
            [
                *(line.name, line.summary.num_values, tested.num_cases),
                *(line.summary.mean, line.summary.deviation, tested.difference, *(tested.interval or (None, None))),
                *(tested.p, tested.corrected, tested.false_claim, tested.detectable),
                *_drawn(line.scores, theirs if line.comparison else None),
                *((rank.mean, *rank.interval, rank.first) if rank else (None,) * 4),
            ]
        )
    return as_csv(HEADING, rows)


def _drawn(ours: RowScores, theirs: RowScores | None) -> tuple[float | None, float | None, float | None]:
    """Return the ends of the difference's interval over draws, and the p of permutations over patients."""
    found = shared_cases([ours, theirs]) if theirs else None
    if found is None:
        return None, None, None
    low, high = bootstrap_interval(*found) or (None, None)
    return low, high, permuted_p(*found)


def _ranks(rows: Sequence[RowScores], direction: Direction | None) -> Sequence[Rank | None]:
    """Rank the rows over draws of runs, and of the patients that all of them share, if they do."""
    if direction is None or len(rows) < 2:
        return [None] * len(rows)
    found = shared_cases(rows) or [np.array(row.values)[:, None] for row in rows]
    return ranks_of(found, direction == "max")
