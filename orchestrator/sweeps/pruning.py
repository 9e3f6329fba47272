"""Pruning: which trials of a sweep to end early. Pure decisions on the trials' curves.

The decisions are those of Ray Tune's own schedulers (tests check that). Here they are functions of what all trials
have reported. Tune's schedulers keep their memory in the driver, where a kill loses it, and end a trial by killing
its process, which leaves Ray Train's workers in disorder.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from methods.base import FrozenConfig

Curve = Mapping[int, float]  # step -> value, of one trial


class Scheduler(FrozenConfig):
    """When to end a trial early.

    name              asha: at steps grace, grace * reduction_factor, ... a trial goes on if it is among the best of
                      the trials that came as far (Li et al., "A System for Massively Parallel Hyperparameter Tuning",
                      2020); median: after ``grace`` steps it ends if its best is below the median of the others'
                      means so far (Golovin et al., "Google Vizier", 2017)
    grace             no trial is ended before this many steps of the training that has the objective
    reduction_factor  asha: one trial in this many goes on
    least_trials      median: how many other trials must have come as far
    """

    name: Literal["asha", "median", "none"] = "none"
    grace: int | None = Field(default=None, gt=0)
    reduction_factor: float = Field(default=3, gt=1)
    least_trials: int = Field(default=3, gt=0)

    @model_validator(mode="after")
    def _has_grace(self) -> "Scheduler":
        if self.name != "none" and self.grace is None:
            raise ValueError(f"scheduler {self.name} without grace; give the steps before which no trial is ended")
        return self


def prune(scheduler: Scheduler, curve: Curve, others: Sequence[Curve]) -> bool:
    """Tell whether to end a trial after the newest point of its curve; higher values are better."""
    if scheduler.name == "none" or not curve:
        return False
    assert scheduler.grace is not None, "held by _has_grace"
    if scheduler.name == "asha":
        return _below_cutoff(curve, others, scheduler.grace, scheduler.reduction_factor)
    return _below_median(curve, others, scheduler.grace, scheduler.least_trials)


def _below_cutoff(curve: Curve, others: Sequence[Curve], grace: int, factor: float) -> bool:
    newest = max(curve)
    if newest < grace:
        return False
    rung = grace
    while rung * factor <= newest:
        rung *= factor
    if _arrived(curve, rung) != newest:
        return False  # decided when the trial reached the rung
    values = [other[step] for other in others if (step := _arrived(other, rung)) is not None]
    return bool(values) and curve[newest] < np.percentile(values, (1 - 1 / factor) * 100)


def _arrived(curve: Curve, rung: float) -> int | None:
    """Return the first step at which a curve was at a rung or beyond."""
    return min((step for step in curve if step >= rung), default=None)


def _below_median(curve: Curve, others: Sequence[Curve], grace: int, least_trials: int) -> bool:
    newest = max(curve)
    if newest < grace:
        return False
    means = [
        float(np.mean([value for step, value in other.items() if grace <= step <= newest]))
        for other in others
        if other and max(other) >= newest and any(grace <= step <= newest for step in other)
    ]
    return len(means) >= least_trials and max(curve.values()) < float(np.median(means))
