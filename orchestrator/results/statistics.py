"""Mean, sample deviation and Welch's t-test of repeated runs, with the reason if a number does not exist."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Repeated values of one metric. ``deviation`` is the sample deviation (n - 1); None below two values."""

    values: tuple[float, ...]
    mean: float | None
    deviation: float | None

    @property
    def num_values(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Comparison:
    """The two-sided p of a test, or None with the reason in ``remark``."""

    p: float | None
    remark: str = ""


def summarise(values: Sequence[float]) -> Summary:
    """Return the mean and sample deviation of repeated runs; no values give a mean of None.

    Raises ValueError if a value is not finite: the caller leaves out failed runs.
    """
    for value in values:
        if not math.isfinite(value):
            raise ValueError(
                f"summary of {len(values)} values: {value} is not finite; expected a number for every run; "
                "leave out the runs that failed"
            )
    if not values:
        return Summary((), None, None)
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Summary(tuple(values), mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Summary(tuple(values), mean, math.sqrt(variance))


def confidence_interval(summary: Summary, level: float = 0.95) -> tuple[float, float] | None:
    """Return the ends of the mean's interval by Student's t; None below two values."""
    if summary.mean is None or summary.deviation is None:
        return None
    n = summary.num_values
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * summary.deviation / math.sqrt(n)
    return summary.mean - half, summary.mean + half


def welch(values: Sequence[float], reference: Sequence[float]) -> Comparison:
    """Test whether two groups of runs have the same mean, without assuming that their variances are equal.

    Welch, Biometrika 34 (1947). Runs are taken as independent. Fine-tunings of one shared pretraining are not quite
    independent, so their p is somewhat too small.
    """
    if min(len(values), len(reference)) < 2:
        return Comparison(None, f"needs 2 runs in each row; there are {len(values)} and {len(reference)}")
    if len(set(values)) == len(set(reference)) == 1:
        same = "equal" if values[0] == reference[0] else "different"
        return Comparison(None, f"no spread in either row, and {same} means: the test is undefined")
    ours, theirs = summarise(values), summarise(reference)
    _, p = stats.ttest_ind_from_stats(
        ours.mean, ours.deviation, len(values), theirs.mean, theirs.deviation, len(reference), equal_var=False
    )
    return Comparison(float(p))
