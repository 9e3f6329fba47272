"""The optimiser's config: values that nothing reads are refused, and every value that is read decides a run's key."""

from typing import Any

import pytest
from pydantic import ValidationError

from methods.base import decisive
from orchestrator.config.optimiser import READ_BY, Optimiser

# For each field that only some kinds or schedules read: fields with which it is read, and two values of it.
READ: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "momentum": ({"name": "lars"}, 0.9, 0.8),
    "betas": ({"name": "adam"}, (0.9, 0.999), (0.8, 0.999)),
    "amsgrad": ({"name": "adamw"}, False, True),
    "trust_coefficient": ({"name": "lars"}, 0.001, 0.02),
    "trust_eps": ({"name": "larc"}, 1e-8, 0),
    "trust_undecayed": ({"name": "larc"}, False, True),
    "trust_clip": ({"name": "larc"}, True, False),
    "final_lr": ({"schedule": "poly"}, 0, 0.01),
    "milestone_epochs": ({"schedule": "step"}, (48, 66), (48, 67)),
    "milestone_factor": ({"schedule": "step", "milestone_epochs": (48, 66)}, 0.1, 0.5),
    "poly_power": ({"schedule": "poly"}, 0.9, 2),
}
ELSEWHERE = {"name": ("sgd", "adamw", "adam", "lars", "larc"), "schedule": ("constant", "cosine")}


def optimiser(**fields: Any) -> Optimiser:
    return Optimiser.model_validate({"lr": 0.1, **fields})


def test_every_field_that_only_some_read_is_tested() -> None:
    assert READ.keys() == READ_BY.keys()


@pytest.mark.parametrize("field", READ)
def test_a_value_decides_the_key_where_it_is_read_and_is_refused_elsewhere(field: str) -> None:
    others, value, other = READ[field]
    first, second = optimiser(**others, **{field: value}), optimiser(**others, **{field: other})
    assert decisive(first) != decisive(second)
    decider, readers = READ_BY[field]
    for chosen in set(ELSEWHERE[decider]) - set(readers):
        with pytest.raises(
            ValidationError, match=rf"{field} .* belongs to {decider} .*; {decider} is {chosen}: leave"
        ):
            optimiser(**{decider: chosen, field: other})


@pytest.mark.parametrize(
    "fields", [{}, {"name": "sgd"}, {"schedule": "constant"}, {"name": "larc", "trust_clip": False}], ids=str
)
def test_a_config_that_was_written_out_with_all_its_defaults_is_read_again(fields: dict[str, Any]) -> None:
    config = optimiser(**fields)
    assert Optimiser.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schedule": "step"}, r"milestone_epochs \[\]: schedule step needs one or more epochs in rising order"),
        ({"schedule": "step", "milestone_epochs": [66, 48]}, r"milestone_epochs \[66, 48\]: schedule step needs"),
        ({"schedule": "step", "milestone_epochs": [48, 48]}, r"milestone_epochs \[48, 48\]: schedule step needs"),
        ({"schedule": "step", "milestone_epochs": [3], "warmup_epochs": 5}, r"inside the warm-up of 5 epochs"),
        ({"schedule": "step", "milestone_epochs": [0]}, r"greater than 0"),
        ({"schedule": "step", "milestone_epochs": [3], "milestone_factor": 1}, r"less than 1"),
        ({"schedule": "poly", "poly_power": 0}, r"greater than 0"),
        ({"name": "lars", "trust_coefficient": 0}, r"greater than 0"),
        ({"name": "lars", "trust_eps": -1}, r"greater than or equal to 0"),
        ({"final_weight_decay": -0.1}, r"greater than or equal to 0"),
        ({"name": "larc", "trust_clip": False, "betas": [0.8, 0.9]}, r"betas \[0.8, 0.9\] belongs to name adam or"),
        ({"name": "lars", "trust_clip": False}, r"trust_clip false belongs to name larc; name is lars"),
    ],
    ids=str,
)
def test_senseless_values_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        optimiser(**fields)
