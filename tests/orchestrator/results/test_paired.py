"""Paired tests against scipy and formulas written out, and what they claim in simulated tables."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

from orchestrator.bench.claims import Simulation, false_claims
from orchestrator.results.claims import RowScores, best_of, corrected, holm
from orchestrator.results.paired import bootstrap_interval, crossed, permuted_p, ranks_of
from orchestrator.results.statistics import Comparison, by_student, welch

RUNS, CASES = 3, 25


def table(rng: np.random.Generator, num_rows: int, luck: float, interaction: float, gain: float = 0.0) -> list:
    """Return rows of scores (runs, cases) over easy and hard cases; the second row is better by ``gain``.

    ``luck`` is the deviation of runs, ``interaction`` of how well a row does on a case whatever the seed.
    """
    cases = 0.7 + rng.normal(0, 0.1, CASES)
    rows = []
    for number in range(num_rows):
        runs, on_cases = rng.normal(0, luck, (RUNS, 1)), rng.normal(0, interaction, CASES)
        rows.append(cases + runs + on_cases + rng.normal(0, 0.05, (RUNS, CASES)) + gain * (number == 1))
    return rows


def slow_crossed_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Compute the variances of runs, of cases, and of both at once in loops, and Student's p."""

    def residual(scores: np.ndarray) -> float:
        total, (num_runs, num_cases) = 0.0, scores.shape
        for run, case in itertools.product(range(num_runs), range(num_cases)):
            expected = scores[run].mean() + scores[:, case].mean() - scores.mean()
            total += (scores[run, case] - expected) ** 2
        return total / ((num_runs - 1) * (num_cases - 1)) / num_runs / num_cases

    num_cases = ours.shape[1]
    a, b = (stats.sem([run.mean() for run in scores]) ** 2 for scores in (ours, theirs))
    c = stats.sem([ours[:, case].mean() - theirs[:, case].mean() for case in range(num_cases)]) ** 2
    total = max(a + b + c - residual(ours) - residual(theirs), a + b, c)
    freedom = total**2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1) + c**2 / (num_cases - 1))
    return float(2 * stats.t.sf(abs(ours.mean() - theirs.mean()) / math.sqrt(total), freedom))


@pytest.mark.parametrize(("luck", "interaction"), [(0, 0), (0.02, 0), (0, 0.05), (0.02, 0.05)])
def test_p_over_runs_and_cases_is_that_of_the_variances_written_out(luck: float, interaction: float) -> None:
    for seed in range(5):
        ours, theirs = table(np.random.default_rng(seed), 2, luck, interaction)
        found = crossed(ours[:2], theirs)
        assert found is not None
        assert found.p == pytest.approx(slow_crossed_p(ours[:2], theirs), abs=1e-12)
        assert found.difference == pytest.approx(ours[:2].mean() - theirs.mean())
        assert found.false_claim == pytest.approx(found.p / 2)


def test_where_only_runs_differ_it_is_welch_s_test_of_their_means() -> None:
    ours, theirs = (np.array(runs)[:, None] + np.zeros((1, 8)) for runs in ([0.5, 0.6, 0.8], [0.4, 0.42]))
    found = crossed(ours, theirs)
    expected = stats.ttest_ind(ours[:, 0], theirs[:, 0], equal_var=False)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue)
    assert welch(ours[:, 0].tolist(), theirs[:, 0].tolist()).p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_without_a_second_run_or_case_or_any_variance_there_is_no_p() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 6))
    assert crossed(scores[:1], scores) is None
    assert crossed(scores[:, :1], scores[:, :1]) is None
    assert crossed(np.ones((2, 3)), np.ones((2, 3))) is None
    assert bootstrap_interval(scores[:1], scores) is None
    assert permuted_p(scores[:, :1], scores[:, :1]) is None


def test_few_cases_are_permuted_in_all_ways_and_many_at_random_with_the_true_one_counted() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.3, 1, (3, 8)), rng.normal(0, 1, (2, 8))
    differences = ours.mean(0) - theirs.mean(0)
    signs = np.array(list(itertools.product([1, -1], repeat=8)))
    sums = np.abs((signs * differences).sum(1))
    exact = (sums >= abs(differences.sum()) - 1e-12).mean()
    assert permuted_p(ours, theirs) == pytest.approx(exact)
    far = np.arange(40.0)[None] + np.full((2, 40), 100.0)
    assert permuted_p(far, np.zeros((2, 40))) == pytest.approx(2 / 10_000)
    assert permuted_p(far, np.zeros((2, 40))) == permuted_p(far, np.zeros((2, 40)))


@pytest.mark.slow
@pytest.mark.parametrize(("luck", "interaction"), [(0.03, 0), (0, 0.05), (0.01, 0.03), (0.02, 0.05)])
def test_of_a_thousand_tables_without_a_difference_at_most_five_percent_claim_one(
    luck: float, interaction: float
) -> None:
    rng, claimed = np.random.default_rng(7), 0
    for _ in range(1000):
        rows = table(rng, 5, luck, interaction)
        tested = [crossed(row, rows[0]) for row in rows[1:]]
        lowest = min(one.p for one in tested if one is not None and one.p is not None)
        claimed += lowest * len(tested) < 0.05  # Holm's first step
    assert claimed <= 62, "5 % of 1,000, and two standard errors"


@pytest.mark.slow
def test_the_documented_simulation_finds_what_the_documentation_says() -> None:
    found = false_claims(Simulation(luck=0.03, interaction=0.03, num_cases=20), tables=60)
    assert found["over runs and cases"] <= 0.1 < found["over cases"]


@pytest.mark.slow
def test_no_row_is_called_best_by_chance_and_one_that_is_better_is() -> None:
    def called(gain: float) -> int:
        rng, count = np.random.default_rng(3), 0
        for _ in range(60):
            rows = table(rng, 4, 0.01, 0.02, gain)
            scores = [RowScores(row.mean(1).tolist(), [dict(enumerate_names(run)) for run in row]) for row in rows]
            best = best_of(scores, "max")
            assert best is not None
            count += best.alike == ()
            assert best.row == 1 or gain < 0.1
        return count

    assert called(0.0) <= 5
    assert called(0.1) >= 50


def enumerate_names(run: np.ndarray) -> list[tuple[str, float]]:
    return [(f"p-{place:02d}", float(score)) for place, score in enumerate(run)]


@pytest.mark.parametrize("power", [0.5, 0.8])
@pytest.mark.parametrize(("luck", "interaction", "lost"), [(0.01, 0.05, 0.1), (0.02, 0.1, 0.1), (0.02, 0, 0.15)])
def test_the_power_is_that_of_theory(luck: float, interaction: float, lost: float, power: float) -> None:
    """A gain is claimed as often as a noncentral t has it whose variances are known.

    Where rows do not differ in how they do on cases, that has to be found out: the power is somewhat below.
    """
    runs = (luck**2 + 0.05**2 / CASES) / RUNS
    cases = 2 * (interaction**2 + 0.05**2 / RUNS) / CASES
    total = 2 * (luck**2 / RUNS + interaction**2 / CASES + 0.05**2 / RUNS / CASES)
    freedom = total**2 / (2 * runs**2 / (RUNS - 1) + cases**2 / (CASES - 1))
    threshold, error = stats.t.ppf(0.975, freedom), math.sqrt(total)
    gain = optimize.brentq(lambda gain: stats.nct.sf(threshold, freedom, gain / error) - power, 0, 20 * error)
    rng, found, repeats = np.random.default_rng(11), 0, 600
    for _ in range(repeats):
        theirs, ours = table(rng, 2, luck, interaction, gain)
        tested = crossed(ours, theirs)
        assert tested is not None
        found += tested.p is not None and tested.p < 0.05
    assert power - lost <= found / repeats <= power + 0.05


def test_a_difference_that_four_of_five_experiments_would_show_is_that_of_student_s_t() -> None:
    found = by_student(0.1, error=0.02, freedom=6)
    assert found.detectable is not None
    shown = stats.nct.sf(stats.t.ppf(0.975, 6), 6, found.detectable / 0.02)
    assert shown == pytest.approx(0.8, abs=0.03)


@pytest.mark.slow
def test_the_interval_of_runs_and_cases_together_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, covered, repeats = np.random.default_rng(5), 0, 150
    for _ in range(repeats):
        rows = table(rng, 2, 0.005, 0.05, 0.03)
        interval = bootstrap_interval(rows[1], rows[0])
        assert interval is not None
        covered += interval[0] <= 0.03 <= interval[1]
    assert 0.88 <= covered / repeats <= 1


def test_ranks_are_means_over_draws_and_firsts_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    worse, better = rng.normal(0.5, 0.01, (3, 20)), rng.normal(0.8, 0.01, (3, 20))
    found = ranks_of([worse, better, worse], higher_is_better=True)
    assert [rank.mean for rank in found] == [pytest.approx(2.5, abs=0.3), 1.0, pytest.approx(2.5, abs=0.3)]
    assert (found[1].first, found[1].interval) == (1.0, (1.0, 1.0))
    assert sum(rank.first for rank in found) == pytest.approx(1)
    assert ranks_of([worse, better], higher_is_better=False)[0].first == 1.0


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_holm_s_correction_is_statsmodels_also_with_ties(count: int) -> None:
    p = np.random.default_rng(count).uniform(0, 0.2, count).round(2).tolist()
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=0, atol=1e-15)


def test_only_the_rows_that_have_a_p_are_corrected() -> None:
    given = {
        "a": Comparison(0.01),
        "b": None,
        "c": Comparison(None, "one run"),
        "d": Comparison(0.04),
        "e": Comparison(0.03),
    }
    found = corrected(given)
    assert {name: one and one.corrected for name, one in found.items()} == {
        "a": pytest.approx(0.03),
        "b": None,
        "c": None,
        "d": pytest.approx(0.06),
        "e": pytest.approx(0.06),
    }
