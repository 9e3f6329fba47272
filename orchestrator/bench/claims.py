"""Claims: how often each of some tests calls a row better in simulated tables, run by ``python -m``.

A table has five rows of three runs, judged by the same cases. A score is the case's own, the row's gain, the luck of
the run, how well the row does on the case whatever the seed, and noise. Without a gain each claim is false.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from orchestrator.results.paired import RunScores, crossed

ROWS, RUNS, TABLES, ALPHA = 5, 3, 1000, 0.05
CASE, NOISE = 0.1, 0.05


@dataclass(frozen=True)
class Simulation:
    """What varies in simulated tables: deviations of runs, of rows on cases, and the number of cases."""

    luck: float
    interaction: float
    num_cases: int

    def table(self, rng: np.random.Generator, gain: float = 0.0) -> list[RunScores]:
        """Return the rows of a table; the second row has the gain."""
        cases = 0.7 + rng.normal(0, CASE, self.num_cases)
        rows = []
        for number in range(ROWS):
            luck = rng.normal(0, self.luck, (RUNS, 1))
            on_cases = rng.normal(0, self.interaction, self.num_cases)
            noise = rng.normal(0, NOISE, (RUNS, self.num_cases))
            rows.append(cases + luck + on_cases + noise + gain * (number == 1))
        return rows


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
SIMULATIONS = [
    Simulation(luck, interaction, num_cases)
    for num_cases in (20, 100)
    for luck, interaction in ((0, 0), (0.01, 0), (0.03, 0), (0, 0.03), (0.01, 0.03))
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
    printed = Table("cases", "luck of runs", "rows on cases", *TESTS)
    for simulation in SIMULATIONS:
        shares = false_claims(simulation)
        cells = (str(simulation.num_cases), str(simulation.luck), str(simulation.interaction))
        printed.add_row(*cells, *(f"{share:.3f}" for share in shares.values()))
    Console().print(printed)


if __name__ == "__main__":
    main()
