"""Mean, sample deviation and Welch's t-test of repeated runs, with the reason if a number does not exist."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL, POWER = 0.95, 0.8


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
    """A row of runs against another: the two-sided p of a test, or None with the reason in ``remark``.

    corrected   p corrected for the number of rows that were tested (Holm)
    difference  of the means, and ``interval`` its 95 % interval
    num_cases   patients over which p counts too; None where it counts over runs alone
    detectable  the true difference that so many runs and cases would show in four of five experiments
    """

    p: float | None
    remark: str = ""
    corrected: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    num_cases: int | None = None
    detectable: float | None = None

    @property
    def false_claim(self) -> float | None:
        """The probability that the row which seems better is not: by Student's t, with no prior belief."""
        return None if self.p is None else self.p / 2


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


def by_student(difference: float, error: float, freedom: float) -> Comparison:
    """Test a difference by Student's t, from its standard error and the degrees of freedom of that."""
    from scipy import stats  # two seconds and 36 MB, which a sweep's trials, each a process, need not spend

    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return Comparison(
        float(2 * stats.t.sf(abs(difference) / error, freedom)),
        difference=difference,
        interval=(difference - half, difference + half),
        detectable=half + float(stats.t.ppf(POWER, freedom)) * error,
    )


def confidence_interval(summary: Summary, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the ends of the mean's interval by Student's t; None below two values."""
    if summary.mean is None or summary.deviation is None:
        return None
    from scipy import stats

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
    assert ours.mean is not None
    assert theirs.mean is not None
    parts = [(one.deviation or 0) ** 2 / one.num_values for one in (ours, theirs)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (one.num_values - 1) for part, one in zip(parts, (ours, theirs), strict=True)
    )
    return by_student(ours.mean - theirs.mean, math.sqrt(sum(parts)), freedom)
