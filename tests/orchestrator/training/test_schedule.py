"""Learning rate and weight decay of every step equal closed forms, in each shape and with each warm-up."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from methods.parts.schedule import WarmUp
from orchestrator.config.optimiser import Optimiser
from orchestrator.config.parts import Budget
from orchestrator.training.optimiser import Schedule
from tests.references import simsiam as reference

WARM_UPS: tuple[WarmUp, ...] = ("above_zero", "from_zero", "zero_to_peak")


def rates(steps: int, warmup_steps: int = 0, milestones: tuple[int, ...] = (), **fields: Any) -> list[float]:
    plan = Schedule(Optimiser.model_validate(fields), steps, warmup_steps, milestones)
    return [plan.rate(step) for step in range(steps)]


def test_learning_rate_of_every_step_equals_the_thesis() -> None:
    steps = 100 * (237_449 // 128) // 50
    expected = reference.cosine_rates(0.05 * 128 / 256, 1e-6, steps)
    found = rates(steps, lr=0.025, final_lr=1e-6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    assert found[0] == 0.025
    assert found[-1] < 1.1e-6


def test_warm_up_rises_linearly_to_the_peak_and_the_cosine_follows() -> None:
    found = rates(30, 10, lr=0.001, final_lr=5e-5)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) * 1e-4, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found[10:], reference.cosine_rates(0.001, 5e-5, 20), rtol=0, atol=1e-15)


def test_released_warm_ups_rise_from_zero_and_the_same_cosine_follows() -> None:
    above_zero, from_zero, zero_to_peak = (
        rates(30, 10, lr=0.001, final_lr=5e-5, warmup=warmup) for warmup in WARM_UPS
    )
    thesis = np.concatenate([np.linspace(0, 0.001, 10), reference.cosine_rates(0.001, 5e-5, 20)])
    np.testing.assert_allclose(zero_to_peak, thesis, rtol=0, atol=1e-15)
    np.testing.assert_allclose(from_zero[:10], np.arange(10) * 1e-4, rtol=0, atol=1e-15)
    assert from_zero[10:] == zero_to_peak[10:] == above_zero[10:]
    assert rates(30, 1, lr=0.001, warmup="zero_to_peak")[0] == 0


@pytest.mark.parametrize("shape", ["cosine", "constant", "poly", "step"])
def test_the_optimiser_warms_up_in_the_shape_that_its_config_names(shape: str) -> None:
    milestones = {"milestone_epochs": [4]} if shape == "step" else {}
    for warmup, expected in zip(WARM_UPS, ([0.5, 1], [0, 0.5], [0, 1]), strict=True):
        found = rates(10, 2, (4,), lr=1, schedule=shape, warmup=warmup, **milestones)
        assert found[:3] == [*expected, 1]


def test_poly_is_nnu_nets_without_a_warm_up_and_falls_to_the_final_rate() -> None:
    found = rates(1000, lr=0.01, schedule="poly")
    np.testing.assert_allclose(found, [0.01 * (1 - step / 1000) ** 0.9 for step in range(1000)], rtol=1e-12)
    found = rates(50, 10, lr=1.0, final_lr=0.2, schedule="poly", poly_power=2)
    np.testing.assert_allclose(found[10:], [0.2 + 0.8 * (1 - i / 40) ** 2 for i in range(40)], rtol=1e-12)


def test_step_multiplies_the_rate_at_each_milestone_as_in_the_detection_of_svd_net() -> None:
    config = Optimiser(
        name="sgd", lr=0.02, schedule="step", milestone_epochs=(48, 66), milestone_factor=0.1, warmup_epochs=1
    )
    plan = Schedule.of(config, Budget(epochs=72, batch_size=4), num_samples=10)
    assert (plan.total_steps, plan.warmup_steps, plan.milestones) == (180, 2, (120, 165))
    expected = [0.01, 0.02, *[0.02] * 118, *[0.002] * 45, *[0.0002] * 15]
    np.testing.assert_allclose([plan.rate(step) for step in range(180)], expected, rtol=1e-12)


def test_a_milestone_beyond_the_budget_is_refused_with_its_steps() -> None:
    config = Optimiser(lr=0.02, schedule="step", milestone_epochs=(48, 72))
    with pytest.raises(
        ValueError,
        match=r"optimiser\.milestone_epochs 72: the milestone is at step 180, and the budget ends after 180 steps",
    ):
        Schedule.of(config, Budget(epochs=72, batch_size=4), num_samples=10)
    assert Schedule.of(config, Budget(steps=181, batch_size=4), num_samples=10).milestones == (120, 180)


def test_weight_decay_follows_half_a_cosine_as_dino_s_and_otherwise_stays() -> None:
    plan = Schedule(Optimiser(lr=1, weight_decay=0.04, final_weight_decay=0.4), total_steps=20, warmup_steps=5)
    found = [plan.decay(step) for step in range(20)]
    expected = [0.4 - 0.36 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert all(first < second for first, second in pairwise(found))
    constant = Schedule(Optimiser(lr=1, weight_decay=0.04), total_steps=20, warmup_steps=5)
    assert {constant.decay(step) for step in range(20)} == {0.04}
    towards_none = Schedule(Optimiser(lr=1, weight_decay=0.04, final_weight_decay=0), total_steps=20, warmup_steps=0)
    assert towards_none.decay(19) < 0.001
