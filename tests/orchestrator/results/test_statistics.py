"""Means, deviations and Welch's p against formulas written out and against the thesis' printed Table 4.2."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from orchestrator.results.statistics import Comparison, confidence_interval, summarise, welch

SCRATCH = (0.842, 0.848, 0.846, 0.836)
BEST = (0.854, 0.851, 0.851, 0.857)


def slow_welch_p(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Integrate Student's density beyond Welch's t, with the Welch-Satterthwaite degrees of freedom."""
    means = [sum(x) / len(x) for x in (a, b)]
    squares = [sum((v - m) ** 2 for v in x) / (len(x) - 1) / len(x) for x, m in zip((a, b), means, strict=True)]
    t = abs(means[0] - means[1]) / math.sqrt(sum(squares))
    freedom = sum(squares) ** 2 / sum(s**2 / (len(x) - 1) for s, x in zip(squares, (a, b), strict=True))
    norm = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    within, _ = quad(lambda x: norm * (1 + x * x / freedom) ** (-(freedom + 1) / 2), 0, t, epsabs=1e-13)
    return 1 - 2 * within


def test_summary_of_the_thesis_scratch_row_has_its_printed_mean() -> None:
    summary = summarise(SCRATCH)
    assert summary.num_values == 4
    assert summary.mean == pytest.approx(0.843)
    assert summary.deviation == pytest.approx(math.sqrt((1 + 25 + 9 + 49) / 3) * 1e-3)


def test_welch_p_equals_the_integral_of_student_s_density() -> None:
    assert welch(BEST, SCRATCH).p == pytest.approx(slow_welch_p(BEST, SCRATCH), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=6), st.lists(st.integers(0, 1000), min_size=2, max_size=6))
def test_welch_is_symmetric_and_says_why_there_is_no_p(a: list[int], b: list[int]) -> None:
    one, other = (welch([x / 1000 for x in first], [x / 1000 for x in second]) for first, second in ((a, b), (b, a)))
    if len(set(a)) == len(set(b)) == 1:
        assert one == other
        assert "no spread in either row" in one.remark
    else:
        assert one.p == pytest.approx(other.p)
        assert 0 <= one.p <= 1


def test_one_run_gives_no_deviation_and_no_p() -> None:
    assert summarise([0.5]).deviation is None
    assert welch([0.5], SCRATCH) == Comparison(None, "needs 2 runs in each row; there are 1 and 4")


def test_rows_without_spread_give_no_p_and_say_whether_they_differ() -> None:
    assert welch([0.5, 0.5], [0.5, 0.5]).remark == "no spread in either row, and equal means: the test is undefined"
    assert (
        welch([0.5, 0.5], [0.6, 0.6]).remark == "no spread in either row, and different means: the test is undefined"
    )


def test_one_row_without_spread_is_still_tested() -> None:
    assert welch([0.5, 0.5, 0.5], [0.6, 0.7, 0.65]).p == pytest.approx(slow_welch_p((0.5,) * 3, (0.6, 0.7, 0.65)))


def test_no_runs_give_no_mean() -> None:
    assert summarise([]).mean is None


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"summary of 2 values: nan is not finite.*leave out the runs that failed"):
        summarise([0.5, math.nan])


def test_an_interval_of_the_mean_is_student_s_and_needs_two_runs() -> None:
    assert confidence_interval(summarise((0.0, 2.0))) == pytest.approx((1 - 12.7062047, 1 + 12.7062047))
    assert confidence_interval(summarise(SCRATCH)) == pytest.approx((0.843 - 0.00841996, 0.843 + 0.00841996))
    assert confidence_interval(summarise((0.5,))) is None
    assert confidence_interval(summarise(())) is None
