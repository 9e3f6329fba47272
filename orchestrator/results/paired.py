"""Paired: a row of runs against another on the cases by which both were judged.

A row is a matrix of scores: a run has more or less luck with its seed, and a case is easy or hard. A difference is
worth a claim where it is likely to be found again with other seeds and with other cases, so ``crossed`` counts the
variance of both. ``permuted_p`` asks less: whether these networks would differ on other cases. A permutation of
whole runs would need no normal distribution, but of three runs a row its smallest p is 0.1. The false claims of each
in simulated tables are in docs/explanation/statistics.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from orchestrator.results.statistics import LEVEL, Comparison, by_student

RunScores = Float[np.ndarray, "_ cases"]
"""Scores (runs, cases); rows may have different numbers of runs."""
PERMUTATIONS, BOOTSTRAPS = 9_999, 10_000
_AT_ONCE = 500  # resampled tables in memory


def crossed(ours: RunScores, theirs: RunScores) -> Comparison | None:
    """Compare two rows' means over other seeds and other cases, by Student's t.

    None below two runs in a row or two cases, or where nothing varies. Runs differ by their seeds, and cases by how
    much better the one row is on them. The variances of both contain what a run does on a single case by chance,
    which is taken off once, though the sum is never below either of them; degrees of freedom by Satterthwaite.
    """
    if min(len(ours), len(theirs), ours.shape[1]) < 2:
        return None
    runs = [float(scores.mean(1).var(ddof=1)) / len(scores) for scores in (ours, theirs)]
    cases = float((ours.mean(0) - theirs.mean(0)).var(ddof=1)) / ours.shape[1]
    chance = sum(_unexplained(scores) / scores.size for scores in (ours, theirs))
    total = max(sum(runs) + cases - chance, sum(runs), cases)
    if total == 0:
        return None
    freedoms = (len(ours) - 1, len(theirs) - 1, ours.shape[1] - 1)
    parts = sum(part**2 / freedom for part, freedom in zip((*runs, cases), freedoms, strict=True))
    return by_student(float(ours.mean() - theirs.mean()), math.sqrt(total), total**2 / parts)


def permuted_p(ours: RunScores, theirs: RunScores) -> float | None:
    """Return the two-sided p of equal means over the cases alone, for these networks; None below two cases.

    The rows' mean scores of each case change places: in all ways where there are at most 9,999, else in so many
    random ones, of which the true one is one more.
    """
    if ours.shape[1] < 2:
        return None
    differences = ours.mean(0) - theirs.mean(0)
    tested = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=_AT_ONCE,
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def bootstrap_interval(ours: RunScores, theirs: RunScores) -> tuple[float, float] | None:
    """Return the ends of the difference's 95 % interval over 10,000 draws of runs and cases together.

    None below two runs in a row, or two cases. A draw has one run and one case less than there are, so that its
    variance is right (Rao and Wu, JASA 83, 1988); with few runs, whose variance is itself little known, the interval
    is narrower than Student's.
    """
    if min(len(ours), len(theirs), ours.shape[1]) < 2:
        return None
    means = np.concatenate([one - other for one, other in _resampled([ours, theirs])])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Rank:
    """A row's place among all rows, the best first: its mean over draws, its 95 % interval, how often it is first."""

    mean: float
    interval: tuple[float, float]
    first: float


def ranks_of(rows: Sequence[RunScores], higher_is_better: bool) -> list[Rank]:
    """Rank rows in 10,000 draws of their runs and of the cases that they share; equal means share their places."""
    places, firsts = [], []
    for means in _resampled(rows):
        signed = np.stack(means, axis=1) * (-1 if higher_is_better else 1)
        places.append(stats.rankdata(signed, axis=1))
        leading = signed == signed.min(1, keepdims=True)
        firsts.append(leading / leading.sum(1, keepdims=True))
    drawn, first = np.concatenate(places), np.concatenate(firsts).mean(0)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [
        Rank(float(mean), (float(a), float(b)), float(share))
        for mean, a, b, share in zip(drawn.mean(0), low, high, first, strict=True)
    ]


def _resampled(rows: Sequence[RunScores]) -> Iterator[list[Float[np.ndarray, " draws"]]]:
    """Yield each row's means over draws of its runs, and of cases that are the same for all rows."""
    rng, num_cases = np.random.default_rng(0), rows[0].shape[1]
    for start in range(0, BOOTSTRAPS, _AT_ONCE):
        draws = min(_AT_ONCE, BOOTSTRAPS - start)
        cases = _shares(rng, draws, num_cases)
        yield [np.einsum("br,rc,bc->b", _shares(rng, draws, len(scores)), scores, cases) for scores in rows]


def _shares(rng: np.random.Generator, draws: int, number: int) -> Float[np.ndarray, "draws number"]:
    """Return the share that each of some things has in draws of one less, with replacement; a single one has all."""
    drawn = max(1, number - 1)
    return rng.multinomial(drawn, np.full(number, 1 / number), size=draws) / drawn


def _unexplained(scores: RunScores) -> float:
    """Return the variance of what neither a run nor a case explains."""
    rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    return float((rest**2).sum() / ((len(scores) - 1) * (scores.shape[1] - 1)))
