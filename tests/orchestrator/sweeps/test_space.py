"""Spaces: what can be drawn, what is refused, which points are given, how points are named."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.sweeps import space as spaces
from orchestrator.sweeps.domains import AnyKnob, Choice, Integer, Interval, Knob, LogUniform, Uniform

BASE = {
    "seed": 0,
    "method": {"name": "simsiam", "crops": {"size": [32, 32], "iou": [0.3, 0.6]}, "predictor_dim": 8},
    "optimiser": {"lr": 0.05},
}
IOU = {"interval": [0, 1], "step": 0.1, "least_width": 0.2}


class Dice:
    """Draws as Optuna's trials do, from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.drawn: dict[str, Any] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step:
            return self._keep(name, low + step * self.random.randint(0, round((high - low) / step)))
        return self._keep(name, low * (high / low) ** self.random.random() if log else self.random.uniform(low, high))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return self._keep(name, self.random.randrange(low, high + 1, step))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._keep(name, self.random.choice(choices))

    def _keep(self, name: str, value: Any) -> Any:
        self.drawn[name] = value
        return value


def space(**fields: Any) -> dict[str, Knob]:
    """Read a space; ``__`` stands for the dot of a field's name."""
    adapter = TypeAdapter(dict[str, AnyKnob])
    return adapter.validate_python({name.replace("__", "."): knob for name, knob in fields.items()})


@given(
    seed=st.integers(0, 2**32), step=st.sampled_from([None, 0.05, 0.1]), width=st.sampled_from([0.0, 0.1, 0.7, 1.0])
)
def test_a_drawn_interval_is_ordered_wide_enough_and_inside(seed: int, step: float | None, width: float) -> None:
    knob = Interval(interval=(0, 1), step=step, least_width=width)
    dice = Dice(seed)
    low, high = knob.draw(dice, "iou")
    assert 0 <= low <= high <= 1
    assert high - low >= width - 1e-9
    assert knob.contains([low, high])
    assert list(dice.drawn) == ["iou.low", "iou.high"]


@pytest.mark.parametrize(
    "knob",
    [
        Choice(choice=(1, "a", [1, 4, 4], {"name": "voco"})),
        Uniform(uniform=(0.1, 0.7), step=0.2),
        Uniform(uniform=(-1, 1)),
        LogUniform(log_uniform=(1e-4, 1)),
        Integer(integer=(8, 64), step=8),
    ],
)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_what_is_drawn_is_contained(knob: Knob, seed: int) -> None:
    assert knob.contains(knob.draw(Dice(seed), "field"))


def test_steps_are_drawn_without_the_dust_of_floating_point() -> None:
    drawn = {Uniform(uniform=(0, 1), step=0.1).draw(Dice(seed), "x") for seed in range(200)}
    assert drawn == {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1}


def test_a_grid_lists_every_combination_the_last_field_changing_fastest() -> None:
    points = spaces.grid(space(a={"choice": ["x", "y"]}, b={"integer": [1, 3]}), {})
    assert [(point["a"], point["b"]) for point in points] == [
        ("x", 1), ("x", 2), ("x", 3), ("y", 1), ("y", 2), ("y", 3),
    ]  # fmt: skip


def test_a_grid_of_intervals_lists_each_pair_of_steps_once() -> None:
    points = spaces.grid(space(iou={"interval": [0, 0.9], "step": 0.3, "least_width": 0.3}), {})
    assert [point["iou"] for point in points] == [[0, 0.3], [0, 0.6], [0, 0.9], [0.3, 0.6], [0.3, 0.9], [0.6, 0.9]]


def test_a_grid_over_numbers_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"uniform \[0, 1\]: a grid needs a finite number of values; give step"):
        spaces.grid(space(a={"uniform": [0, 1]}), {})


def test_a_field_is_drawn_only_where_its_condition_holds() -> None:
    fields = space(
        method__name={"choice": ["simsiam", "voco"]},
        method__crops__iou={**IOU, "when": {"method.name": "simsiam"}},
        method__grid={"choice": [[1, 2, 2], [1, 4, 4]], "when": {"method.name": ["voco"]}},
    )
    seen = set()
    for seed in range(40):
        point = spaces.draw(fields, Dice(seed), BASE)
        seen.add(point["method.name"])
        other = {"simsiam": "method.crops.iou", "voco": "method.grid"}[point["method.name"]]
        assert set(point) == {"method.name", other}
    assert seen == {"simsiam", "voco"}
    fields["method.crops.iou"] = Choice(choice=([0, 0], [0, 1]), when={"method.name": "simsiam"})
    assert len(spaces.grid(fields, BASE)) == 2 + 2


def test_a_condition_may_be_on_what_the_experiment_says() -> None:
    fields = space(method__grid={"choice": [1], "when": {"method.name": "voco"}}, seed={"choice": [0, 1]})
    assert set(spaces.draw(fields, Dice(0), BASE)) == {"seed"}


def test_the_first_point_is_the_experiment_itself() -> None:
    fields = space(
        method__name={"choice": ["simsiam", "voco"]},
        method__crops__iou={**IOU, "when": {"method.name": "simsiam"}},
        method__grid={"choice": [[1, 2, 2]], "when": {"method.name": "voco"}},
        optimiser__lr={"log_uniform": [1e-3, 1]},
    )
    point = spaces.first(fields, BASE)
    assert point == {"method.name": "simsiam", "method.crops.iou": [0.3, 0.6], "optimiser.lr": 0.05}
    assert spaces.params(fields, point) == {
        "method.name": "simsiam",
        "method.crops.iou.low": 0.3,
        "method.crops.iou.high": 0.6,
        "optimiser.lr": 0.05,
    }


def test_an_experiment_s_value_outside_of_the_space_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimiser\.lr: .* own value 0\.05 is not among .* widen the space"):
        spaces.first(space(optimiser__lr={"uniform": [0.1, 1]}), BASE)


def test_a_whole_mapping_can_be_chosen_and_found_again_in_the_experiment() -> None:
    fields = space(method={"choice": [{"name": "scratch"}, {"name": "simsiam", "crops": {"iou": [0.3, 0.6]}}]})
    point = spaces.first(fields, BASE)
    assert spaces.params(fields, point) == {"method": '{"crops": {"iou": [0.3, 0.6]}, "name": "simsiam"}'}


def test_extremes_take_each_field_to_its_ends_where_its_condition_holds() -> None:
    fields = space(
        method__name={"choice": ["simsiam", "voco"]},
        method__predictor_dim={"integer": [4, 8], "when": {"method.name": "simsiam"}},
    )
    assert spaces.extremes(fields, BASE) == [
        {"method.name": "simsiam", "method.predictor_dim": 4},
        {"method.name": "voco"},
        {"method.name": "simsiam", "method.predictor_dim": 4},
        {"method.name": "simsiam", "method.predictor_dim": 8},
    ]


def test_points_are_named_by_the_shortest_names_that_tell_fields_apart() -> None:
    fields = space(
        method__crops__iou=IOU,
        optimiser__lr={"log_uniform": [1e-4, 1]},
        downstream__optimiser__lr={"log_uniform": [1e-4, 1]},
        method__grid={"choice": [[1, 2, 2]]},
    )
    point = {
        "method.crops.iou": [0.3, 0.6],
        "optimiser.lr": 0.0123456,
        "downstream.optimiser.lr": 0.5,
        "method.grid": [1, 2, 2],
    }
    named = "iou 0.3-0.6, optimiser.lr 0.01235, downstream.optimiser.lr 0.5, grid 1 x 2 x 2"
    assert spaces.describe(fields, point) == named


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"uniform": [0, 1], "choice": [1]}, r"give exactly one of choice, uniform"),
        ({}, r"give exactly one of choice, uniform, log_uniform, integer, interval"),
        ({"choice": []}, r"at least 1 item"),
        ({"choice": [1, 2, 1]}, r"choice \[1, 2, 1\] gives a value twice; give each once"),
        ({"uniform": [1, 1]}, r"uniform \[1, 1\] holds nothing to search; give the lower end first"),
        ({"uniform": [0, 1], "step": 0.3}, r"not a whole number of steps of 0\.3; change one"),
        ({"log_uniform": [0, 1]}, r"log_uniform \[0\.0, 1\.0\] begins at 0; begin above 0"),
        ({"integer": [4, 8], "step": 3}, r"integer \[4, 8\] is not a whole number of steps of 3"),
        ({"interval": [0, 1], "least_width": 1.5}, r"1 wide, least_width 1\.5; lower least_width"),
        ({"interval": [0, 1], "step": 0.25, "least_width": 0.1}, r"least_width 0\.1 is not a multiple of step 0\.25"),
        ({"integer": [4, 8], "stepp": 2}, r"stepp\n.*not permitted"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(knob: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        space(field=knob)


def test_a_field_of_a_list_s_member_is_found_by_the_member_s_name_or_place_and_drawn_into_it() -> None:
    base = {"stages": [{"name": "intra", "lr": 1}, {"name": "mask", "lr": 2}]}
    found = [spaces.lookup(base, f"stages.{member}.lr") for member in ("mask", "0", "inter", "7")]
    assert found == [2, 1, None, None]
    knobs = space(stages__mask__lr={"choice": [2, 3]})
    assert spaces.first(knobs, base) == {"stages.mask.lr": 2}
    assert spaces.grid(knobs, base) == [{"stages.mask.lr": 2}, {"stages.mask.lr": 3}]
