"""Pruning: Optuna's pruners decide as the sweep file says, and the same after any end of the sweep."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.sweeps.settings import Scheduler, SweepConfig
from orchestrator.sweeps.study import Ending, Ledger, pruner

STEPS = 9


def ledger_of(folder: Path, scheduler: Scheduler, mode: str = "max") -> Ledger:
    config = SweepConfig.model_validate(
        {
            "name": "seeds",
            "title": "Seeds",
            "experiment": "experiment.yaml",
            "objective": {"metric": "score", "mode": mode},
            "search": {"name": "random"},
            "trials": 20,
            "space": {"seed": {"choice": [0, 1]}},
        }
    )
    return Ledger(folder, config, {"seed": 0}, pruner(scheduler, STEPS))


def ended(ledger: Ledger, values: list[float]) -> int | None:
    """Run a trial with this curve; return the step at which it was ended, None if it ran to its end."""
    number, _ = ledger.take() or (-1, {})
    for step, value in enumerate(values, 1):
        if ledger.falls_behind(number, step, value):
            ledger.end(number, Ending("pruned", value))
            return step
    ledger.end(number, Ending("done", values[-1]))
    return None


@pytest.mark.slow
def test_asha_ends_a_trial_at_a_rung_unless_it_is_among_the_best_that_came_as_far(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Scheduler(name="asha", grace=2, reduction_factor=2))
    rising, late = [0.1 * step for step in range(1, STEPS + 1)], [0.0, 0.3, 0.3, 0.3, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert ended(ledger, rising) is None
    assert ended(ledger, [0.1] * STEPS) == 2
    assert ended(ledger, late) == 4
    assert ended(ledger, [0.9] * STEPS) is None


@pytest.mark.slow
def test_a_trial_that_is_done_before_it_could_be_ended_shows_all_its_steps(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Scheduler(name="asha", grace=2, reduction_factor=2))
    assert ended(ledger, [0.9] * STEPS) is None
    number, _ = ledger.take() or (-1, {})
    judged = [ledger.falls_behind(number, step, 0.1) for step in range(1, STEPS + 1)]
    assert judged == [False] + [True] * (STEPS - 1)
    ledger.end(number, Ending("done", 0.1))
    found = ledger.standings()[number]
    assert (found.state, found.steps, found.value) == ("done", STEPS, 0.1)


def test_lower_values_are_kept_where_lower_is_better(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Scheduler(name="asha", grace=2, reduction_factor=2), mode="min")
    assert [ended(ledger, [value] * STEPS) for value in (0.5, 0.9, 0.1)] == [None, 2, None]


@pytest.mark.slow
def test_hyperband_lets_some_trials_run_further_before_they_are_judged(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path / "sweep", Scheduler(name="hyperband", grace=1, reduction_factor=3))
    steps = [ended(ledger, [1.0 - 0.01 * number] * STEPS) for number in range(20)]
    assert {*steps} == {None, 1, 3, 9}
    assert steps.count(1) > steps.count(3) > 0


@pytest.mark.slow
def test_the_median_rule_ends_a_trial_below_the_median_of_enough_that_finished(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Scheduler(name="median", grace=3, least_trials=3))
    assert [ended(ledger, [value] * STEPS) for value in (0.5, 0.1, 0.9)] == [None, None, None]
    assert [ended(ledger, [value] * STEPS) for value in (0.4, 0.6, 0.4)] == [3, None, 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_a_sweep_that_is_killed_in_every_trial_ends_the_same_trials_at_the_same_steps(
    tmp_path: Path, name: str
) -> None:
    scheduler = Scheduler.model_validate({"name": name, "grace": 2, "reduction_factor": 2, "least_trials": 2})
    curves = np.random.default_rng(0).random((6, STEPS)).tolist()
    whole = ledger_of(tmp_path / "whole" / "sweep", scheduler)
    expected = [ended(whole, curve) for curve in curves]
    assert {*expected} > {None}
    found: list[int | None] = []
    for curve in curves:
        cut = ledger_of(tmp_path / "cut" / "sweep", scheduler)
        number, _ = cut.take() or (-1, {})
        for step, value in enumerate(curve[:5], 1):
            cut.falls_behind(number, step, value)
        # The trial that goes on is the one that was cut, and it reports its curve from the beginning.
        found.append(ended(ledger_of(tmp_path / "cut" / "sweep", scheduler), curve))
        assert found[-1] in (1, None) or found[-1] > 5, (
            "what was decided before the kill is known at the first report"
        )
    assert [step if step != 1 else early for step, early in zip(found, expected, strict=True)] == expected


@pytest.mark.slow
def test_a_report_that_passes_a_rung_is_judged_there_once(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Scheduler(name="asha", grace=4, reduction_factor=2))
    numbers = [number for number, _ in (ledger.take() or (-1, {}) for _ in range(3))]
    assert not ledger.falls_behind(numbers[0], 5, 0.8)
    assert [ledger.falls_behind(numbers[1], step, value) for step, value in ((3, 0.1), (6, 0.9), (7, 0.1))] == [
        False, False, False,
    ]  # fmt: skip
    assert [ledger.falls_behind(numbers[2], step, 0.1) for step in (3, 6, 7)] == [False, True, True]


@pytest.mark.slow
def test_no_scheduler_ends_nothing(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Scheduler())
    assert [ended(ledger, [value] * STEPS) for value in (1.0, -1.0)] == [None, None]


def test_a_scheduler_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"scheduler asha without grace; give the steps"):
        Scheduler(name="asha")
    for factor in (1, 2.5):
        with pytest.raises(ValidationError, match=r"reduction_factor\n.*(multiple of 1|greater than or equal to 2)"):
            Scheduler(name="asha", grace=1, reduction_factor=factor)
