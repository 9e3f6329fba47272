"""Claims: how often each of some tests calls a row better in simulated tables, run by ``python -m``.

A table has five rows of two or three runs, judged by the same cases. A value is the case's own, the row's gain, the
luck of the run, how well the row does on the case whatever the seed, and noise. Without a gain each claim is false.

normal   the values are the scores
Dice     most scores are near 1, and a row fails on every tenth case, whose score is 0
AUC      a value says how well a case is told from those of the other class; scores are pseudo-values of the AUC
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import special, stats

from orchestrator.judging.case_scores import pseudo_values
from orchestrator.results.paired import RunScores, crossed

ROWS, TABLES, ALPHA = 5, 1000, 0.05
CASE, NOISE, MEAN = 0.1, 0.05, 0.7
FAILURES, STEEPNESS = 0.1, 20.0  # of Dice: the share of cases on which a row fails, and how far most are pushed to 1


@dataclass(frozen=True)
class Simulation:
    """What varies in simulated tables: deviations of runs and of rows on cases, how many of both, and the scores."""

    luck: float
    interaction: float
    num_cases: int
    num_runs: int = 3
    scores: Literal["normal", "Dice", "AUC"] = "normal"

    def table(self, rng: np.random.Generator, gain: float = 0.0) -> list[RunScores]:
        """Return the rows of a table; the second row has the gain."""
        cases = MEAN + rng.normal(0, CASE, self.num_cases)
        rows = []
        for number in range(ROWS):
            luck = rng.normal(0, self.luck, (self.num_runs, 1))
            on_cases = rng.normal(0, self.interaction, self.num_cases)
            noise = rng.normal(0, NOISE, (self.num_runs, self.num_cases))
            values = cases + luck + on_cases + noise + gain * (number == 1)
            rows.append(values if self.scores == "normal" else self._scored(values, rng))
        return rows

    def _scored(self, values: RunScores, rng: np.random.Generator) -> RunScores:
        if self.scores == "Dice":
            failed = rng.uniform(size=values.shape[1]) < FAILURES
            return np.where(failed, 0.0, special.expit(STEEPNESS * (values - MEAN) + 2))
        return np.stack([auc_scores(run - MEAN, np.arange(len(run)) % 2 == 1) for run in values])


def auc_scores(told: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return each case's pseudo-value of the AUC; ``told`` says how far beyond the usual a case lies on its side."""
    side = np.where(positive, 1, -1) * (told + CASE)
    above = side[positive][:, None] > side[~positive]
    share = np.zeros(len(side))
    share[positive], share[~positive] = above.mean(1), above.mean(0)
    of_class = np.where(positive, positive.sum(), (~positive).sum())
    whole = float(above.mean())
    return np.array(pseudo_values(whole, ((of_class * whole - share) / (of_class - 1)).tolist()))


def over_runs(ours: RunScores, theirs: RunScores) -> float:
    """Return Welch's p of the runs' means."""
    return float(np.asarray(stats.ttest_ind(ours.mean(1), theirs.mean(1), equal_var=False))[1])


def over_cases(ours: RunScores, theirs: RunScores) -> float:
    """Return the p of a paired t-test over cases: a permutation of signs without its freedom of distribution."""
    return float(np.asarray(stats.ttest_rel(ours.mean(0), theirs.mean(0)))[1])


def over_both(ours: RunScores, theirs: RunScores) -> float:
    """Return the p that tables print."""
    tested = crossed(ours, theirs)
    assert tested is not None
    assert tested.p is not None
    return tested.p


TESTS: dict[str, Callable[[RunScores, RunScores], float]] = {
    "over cases": over_cases,
    "over runs": over_runs,
    "over runs and cases": over_both,
}
DEVIATIONS = ((0, 0), (0.01, 0), (0.03, 0), (0, 0.03), (0.01, 0.03))
SIMULATIONS = [
    *(Simulation(*deviations, num_cases) for num_cases in (20, 100) for deviations in DEVIATIONS),
    *(Simulation(*deviations, 20, num_runs=2) for deviations in DEVIATIONS),
    *(Simulation(*deviations, 40, scores=scores) for scores in ("Dice", "AUC") for deviations in DEVIATIONS),
]


def false_claims(simulation: Simulation, tables: int = TABLES) -> dict[str, float]:
    """Return the share of tables without a gain in which each test, Holm-corrected, calls a row better or worse."""
    rng, counts = np.random.default_rng(0), dict.fromkeys(TESTS, 0)
    for _ in range(tables):
        reference, *rows = simulation.table(rng)
        for name, test in TESTS.items():
            lowest = min(test(row, reference) for row in rows)
            counts[name] += lowest * len(rows) < ALPHA  # Holm's first step decides whether there is a claim
    return {name: count / tables for name, count in counts.items()}


def main() -> None:
    """Print the share of false claims of each test in each simulation."""
    printed = Table("scores", "runs", "cases", "luck of runs", "rows on cases", *TESTS)
    for simulation in SIMULATIONS:
        shares = false_claims(simulation)
        counts = (str(simulation.num_runs), str(simulation.num_cases))
        cells = (simulation.scores, *counts, str(simulation.luck), str(simulation.interaction))
        printed.add_row(*cells, *(f"{share:.3f}" for share in shares.values()))
    Console().print(printed)


if __name__ == "__main__":
    main()
