"""The warm-up of a constant rate. That of a cosine is checked with the methods that use it."""

import pytest

from methods.parts.schedule import WarmUp
from orchestrator.config.parts import Budget, Optimiser
from orchestrator.training.optimiser import Schedule


@pytest.mark.parametrize(
    ("shape", "rates"),
    [
        ("above_zero", [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]),
        ("from_zero", [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]),
        ("zero_to_peak", [0.0, 0.8 / 3, 1.6 / 3, 0.8, 0.8, 0.8]),
    ],
)
def test_a_constant_rate_is_reached_by_a_linear_warm_up(shape: WarmUp, rates: list[float]) -> None:
    optimiser = Optimiser(lr=0.8, schedule="constant", warmup=shape)
    schedule = Schedule(optimiser, total_steps=6, warmup_steps=4)
    assert [schedule.rate(step) for step in range(6)] == pytest.approx(rates, abs=1e-12)


def test_a_warm_up_of_most_of_the_budget_is_doubted_with_its_numbers() -> None:
    optimiser = Optimiser(lr=0.001, warmup_epochs=5)
    hardly = Schedule.of(optimiser, Budget(steps=60, batch_size=4), 43)
    assert hardly.doubt() == (
        "optimiser.warmup_epochs 5: the rate still rises to 0.001 at step 54, and the budget ends after 60; lower "
        "optimiser.warmup_epochs, or raise the budget"
    )
    assert Schedule.of(optimiser, Budget(steps=68, batch_size=4), 43).doubt() is None
    assert Schedule.of(Optimiser(lr=0.001), Budget(steps=1, batch_size=4), 43).doubt() is None
