"""Population: which member copies which after a segment, and the values that it goes on with. Pure: no Ray, no files.

Truncation selection and perturbation after Jaderberg et al., "Population Based Training of Neural Networks", 2017. A
decision depends on the seed, the segment and the members' values alone: a sweep that was killed decides alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import numpy as np

from orchestrator.direction import Direction, best_first
from orchestrator.sweeps.domains import DIGITS, Choice, Integer, Interval, Knob, LogUniform, Uniform
from orchestrator.sweeps.settings import Search
from orchestrator.sweeps.space import Point, Space

FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Heir:
    """How a member begins its next segment: from whose end, and with which values."""

    source: int
    point: Point


class Draws:
    """Numbers drawn from a generator, as a knob asks for them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is not None:
            return low + step * int(self.rng.integers(round((high - low) / step) + 1))
        if log:
            return float(np.clip(np.exp(self.rng.uniform(np.log(low), np.log(high))), low, high))
        return float(self.rng.uniform(low, high))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return low + step * int(self.rng.integers((high - low) // step + 1))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]


def heirs(
    search: Search, space: Space, mode: Direction, segment: int, members: Sequence[tuple[Point, float | None]]
) -> list[Heir]:
    """Return how each member begins a segment, from the points and values with which all ended the one before.

    A member without a value has failed, and copies another. Raises ValueError if all have failed.
    """
    values = [value for _, value in members]
    order = best_first(values, mode)
    number = max(1, int(len(members) * search.quantile))
    leading = [place for place in order[:number] if values[place] is not None]
    if not leading:
        raise ValueError(f"all {len(members)} members failed in segment {segment}; expected one to go on from")
    losing = {*order[-number:], *(place for place, value in enumerate(values) if value is None)} - {*leading}
    found = []
    for place, (point, _) in enumerate(members):
        if place not in losing:
            found.append(Heir(place, point))
            continue
        rng = np.random.default_rng([search.seed, segment, place])
        source = leading[int(rng.integers(len(leading)))]
        found.append(Heir(source, _explored(space, members[source][0], search.resample, rng)))
    return found


def _explored(space: Space, point: Point, resample: float, rng: np.random.Generator) -> Point:
    """Return other values near a point's, some of them drawn anew."""
    found = {}
    for field, knob in space.items():
        anew = rng.random() < resample or isinstance(knob, Interval)
        found[field] = knob.draw(Draws(rng), field) if anew else perturbed(knob, point[field], rng)
    return found


def perturbed(knob: Knob, value: Any, rng: np.random.Generator) -> Any:
    """Return a value near another: numbers times 0.8 or 1.2, at least a step apart; choices one place on or back."""
    up = bool(rng.integers(2))
    factor = FACTORS[up]
    match knob:
        case Choice():
            places = len(knob.choice) - 1
            place = next(place for place, given in enumerate(knob.choice) if knob.model_copy(
                update={"choice": (given,)}).contains(value))  # fmt: skip
            return knob.choice[min(max(place + (1 if up else -1), 0), places)]
        case LogUniform():
            low, high = knob.log_uniform
            return float(np.clip(value * factor, low, high))
        case Uniform():
            low, high = knob.uniform
            return float(np.clip(_on_steps(value, value * factor, low, knob.step, up), low, high))
        case Integer():
            low, high = knob.integer
            moved = round(_on_steps(value, value * factor, low, knob.step, up))
            return int(np.clip(moved, low, low + (high - low) // knob.step * knob.step))
        case _:
            raise AssertionError(f"{type(knob).__name__} is drawn anew")


def _on_steps(value: float, moved: float, low: float, step: float | None, up: bool) -> float:
    """Return the step nearest to a moved value, or the next one if that is the value itself."""
    if step is None:
        return moved
    nearest = round(low + round((moved - low) / step) * step, DIGITS)
    return round(value + (step if up else -step), DIGITS) if isclose(nearest, value) else nearest
