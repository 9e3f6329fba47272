"""Ranks over tasks: critical differences against printed ones, tests against scipy and scikit-posthocs."""

import numpy as np
import pytest
import scikit_posthocs
from scipy import stats

from orchestrator.results.tasks import critical_difference, task_ranks


def drawn(num_tasks: int, gains: dict[str, float], seed: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    return [{name: gain + rng.normal(0, 0.1) for name, gain in gains.items()} for _ in range(num_tasks)]


def test_the_critical_difference_is_the_one_that_demsar_prints() -> None:
    """Four classifiers on fourteen data sets: 2.569 sqrt(4 x 5 / (6 x 14)) = 1.25 (JMLR 7, 2006, section 3.2.4)."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(5, 30) == pytest.approx(2.728 * np.sqrt(5 * 6 / (6 * 30)), abs=0.001)


@pytest.mark.parametrize("direction", ["max", "min"])
def test_ranks_and_tests_are_those_of_scipy_and_scikit_posthocs(direction: str) -> None:
    gains = {"a": 0.0, "b": 0.05, "c": 0.3, "d": 0.4}
    means = drawn(8, gains, seed=1)
    found = task_ranks([f"t{n}" for n in range(8)], means, [direction] * 8)
    assert found is not None
    table = np.array([[*own.values()] for own in means]) * (-1 if direction == "max" else 1)
    ranks = stats.rankdata(table, axis=1)
    assert dict(found.ranks) == pytest.approx(dict(zip(gains, ranks.mean(0).tolist(), strict=True)))
    assert [*found.ranks.values()] == sorted(found.ranks.values()), "the best first"
    assert found.friedman_p == pytest.approx(float(stats.friedmanchisquare(*table.T).pvalue))
    expected = scikit_posthocs.posthoc_nemenyi_friedman(table)
    for place, one in enumerate(gains):
        for other_place, other in enumerate(gains):
            assert found.p.loc[one, other] == pytest.approx(expected.iloc[place, other_place])


@pytest.mark.parametrize("seed", range(5))
def test_two_rows_are_told_apart_where_their_ranks_differ_by_the_critical_difference(seed: int) -> None:
    found = task_ranks("abcdefgh", drawn(8, {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.3}, seed), ["max"] * 8)
    assert found is not None
    for one, others in found.alike.items():
        for other in found.ranks:
            apart = abs(found.ranks[one] - found.ranks[other]) > found.critical
            assert other == one or (other not in others) == apart


def test_rows_that_a_task_lacks_and_too_few_rows_or_tasks_are_not_ranked() -> None:
    means = drawn(4, {"a": 0.0, "b": 0.1, "c": 0.2}, 0)
    found = task_ranks(
        "wxyz", [{**own, **({"d": 1.0} if place else {})} for place, own in enumerate(means)], ["max"] * 4
    )
    assert found is not None
    assert set(found.ranks) == {"a", "b", "c"}
    assert found.means["a"] == tuple(own["a"] for own in means)
    assert task_ranks("wx", means[:2], ["max"] * 2) is None
    assert task_ranks("wxyz", [{"a": 1.0, "b": 2.0}] * 4, ["max"] * 4) is None
    assert task_ranks("wxyz", means, ["max", None, "max", "max"]) is None
    same = task_ranks("wxyz", [{"a": 1.0, "b": 1.0, "c": 1.0}] * 4, ["max"] * 4)
    assert same is not None
    assert same.friedman_p == 1.0
    assert same.alike["a"] == ["b", "c"]
