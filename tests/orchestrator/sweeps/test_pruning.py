"""Pruning: the decisions are those of Ray Tune's own schedulers, on curves that a test draws."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

from orchestrator.sweeps.pruning import Scheduler, prune

LENGTH = 20
curves = st.lists(
    st.lists(st.floats(0, 1, allow_nan=False), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=6
)


def ours(scheduler: Scheduler, values: list[list[float]]) -> list[int | None]:
    """Run trials one after the other; return the step at which each was ended."""
    ended: list[int | None] = []
    known: list[dict[int, float]] = []
    for curve in values:
        seen: dict[int, float] = {}
        for step, value in enumerate(curve, 1):
            seen[step] = value
            if prune(scheduler, seen, known):
                break
        ended.append(len(seen) if len(seen) < LENGTH or prune(scheduler, seen, known) else None)
        known.append(seen)
    return ended


def theirs(scheduler: Any, values: list[list[float]]) -> list[int | None]:
    ended: list[int | None] = []
    controller = SimpleNamespace(get_live_trials=list)
    for number, curve in enumerate(values):
        trial = TuneTrial(str(number))
        scheduler.on_trial_add(controller, trial)
        stopped = None
        for step, value in enumerate(curve, 1):
            if scheduler.on_trial_result(controller, trial, {"step": step, "value": value}) == "STOP":
                stopped = step
                break
        ended.append(stopped)
    return ended


@dataclass(frozen=True)
class TuneTrial:
    """As much of a trial as Tune's schedulers look at."""

    trial_id: str


@settings(max_examples=60, deadline=None)
@given(values=curves, grace=st.integers(1, 6), factor=st.sampled_from([2, 3, 4]))
def test_asha_ends_the_trials_that_tune_s_asha_ends(values: list[list[float]], grace: int, factor: int) -> None:
    reference = AsyncHyperBandScheduler(
        time_attr="step", metric="value", mode="max", max_t=10 * LENGTH, grace_period=grace,
        reduction_factor=factor, stop_last_trials=False,
    )  # fmt: skip
    scheduler = Scheduler(name="asha", grace=grace, reduction_factor=factor)
    assert ours(scheduler, values) == theirs(reference, values)


@settings(max_examples=60, deadline=None)
@given(values=curves, grace=st.integers(1, 6), least=st.integers(1, 3))
def test_the_median_rule_ends_the_trials_that_tune_s_ends(values: list[list[float]], grace: int, least: int) -> None:
    reference = MedianStoppingRule(
        time_attr="step", metric="value", mode="max", grace_period=grace, min_samples_required=least
    )
    scheduler = Scheduler(name="median", grace=grace, least_trials=least)
    assert ours(scheduler, values) == theirs(reference, values)


def test_a_report_that_passes_a_rung_is_judged_there_once() -> None:
    scheduler, others = Scheduler(name="asha", grace=4, reduction_factor=2), [{5: 0.9}, {4: 0.8}]
    assert [prune(scheduler, curve, others) for curve in ({3: 0.1}, {3: 0.1, 6: 0.1}, {6: 0.9, 7: 0.1})] == [
        False, True, False,
    ]  # fmt: skip


def test_no_scheduler_ends_nothing() -> None:
    assert not prune(Scheduler(), {100: -1.0}, [{100: 1.0}] * 5)


def test_a_scheduler_without_grace_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scheduler asha without grace; give the steps"):
        Scheduler(name="asha")
