"""Knobs: the kinds of values that a sweep's field can take, and how a value is drawn. Pure: no Ray, no Optuna."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import Discriminator, Field, Tag, model_validator

from methods.base import FrozenConfig

DIGITS = 10  # 0.1 + 0.2 is 0.3
Scalar = str | float | int | bool | None


@runtime_checkable
class Suggests(Protocol):
    """A source of drawn numbers: one of Optuna's trials, or a test."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Knob(FrozenConfig, ABC):
    """One field's values. ``when`` gives the values that other fields must have: {"method.name": "voco"}."""

    when: dict[str, Any] = Field(default_factory=dict)

    @abstractmethod
    def draw(self, by: Suggests, field: str) -> Any:
        """Draw a value."""

    @abstractmethod
    def values(self) -> list[Any]:
        """List every value, for a grid; raise ValueError if there are infinitely many."""

    @abstractmethod
    def ends(self) -> list[Any]:
        """List the values that an experiment must be able to take before a sweep starts."""

    @abstractmethod
    def contains(self, value: Any) -> bool:
        """Return whether a value can be drawn."""

    def params(self, field: str, value: Any) -> dict[str, Scalar]:
        """Return the plain numbers or words that a value is drawn from, for Optuna and for MLflow's charts."""
        return {field: value}


class Choice(Knob):
    """One of some values of any kind."""

    choice: tuple[Any, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _differ(self) -> "Choice":
        labels = [label(value) for value in self.choice]
        if len(set(labels)) < len(labels):
            raise ValueError(f"choice {labels} gives a value twice; give each once")
        return self

    def draw(self, by: Suggests, field: str) -> Any:
        labels = [label(value) for value in self.choice]
        return self.choice[labels.index(by.suggest_categorical(field, labels))]

    def values(self) -> list[Any]:
        return list(self.choice)

    def ends(self) -> list[Any]:
        return list(self.choice)

    def contains(self, value: Any) -> bool:
        return any(agrees(given, value) for given in self.choice)

    def params(self, field: str, value: Any) -> dict[str, Scalar]:
        return {field: next(label(given) for given in self.choice if agrees(given, value))}


class Uniform(Knob):
    """A number between two bounds; with ``step``, one of evenly spaced numbers."""

    uniform: tuple[float, float]
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Uniform":
        _check_range("uniform", self.uniform, self.step)
        return self

    def draw(self, by: Suggests, field: str) -> float:
        drawn = by.suggest_float(field, *self.uniform, step=self.step)
        return round(drawn, DIGITS) if self.step else drawn

    def values(self) -> list[Any]:
        return _ladder(*self.uniform, self.step, "uniform")

    def ends(self) -> list[Any]:
        return list(self.uniform)

    def contains(self, value: Any) -> bool:
        return is_number(value) and _on_ladder(value, *self.uniform, self.step)


class LogUniform(Knob):
    """A number between two bounds whose logarithm is uniform: learning rates, weight decays."""

    log_uniform: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> "LogUniform":
        _check_range("log_uniform", self.log_uniform, None)
        if self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform {list(self.log_uniform)} begins at {self.log_uniform[0]:g}; begin above 0")
        return self

    def draw(self, by: Suggests, field: str) -> float:
        return by.suggest_float(field, *self.log_uniform, log=True)

    def values(self) -> list[Any]:
        return _ladder(*self.log_uniform, None, "log_uniform")

    def ends(self) -> list[Any]:
        return list(self.log_uniform)

    def contains(self, value: Any) -> bool:
        return is_number(value) and self.log_uniform[0] <= value <= self.log_uniform[1]


class Integer(Knob):
    """A whole number between two bounds, both included."""

    integer: tuple[int, int]
    step: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Integer":
        _check_range("integer", self.integer, self.step)
        return self

    def draw(self, by: Suggests, field: str) -> int:
        return by.suggest_int(field, *self.integer, step=self.step)

    def values(self) -> list[Any]:
        return list(range(self.integer[0], self.integer[1] + 1, self.step))

    def ends(self) -> list[Any]:
        return list(self.integer)

    def contains(self, value: Any) -> bool:
        return is_number(value) and value in self.values()


class Interval(Knob):
    """Two ordered numbers at least ``least_width`` apart, such as the bounds of an IoU.

    It is drawn as two numbers: ``<field>.low``, and then ``<field>.high`` from the range that is left.
    """

    interval: tuple[float, float]
    step: float | None = Field(default=None, gt=0)
    least_width: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Interval":
        low, high = self.interval
        _check_range("interval", self.interval, self.step)
        if self.least_width > high - low:
            raise ValueError(
                f"interval {[low, high]} is {high - low:g} wide, least_width {self.least_width:g}; lower least_width"
            )
        if self.step and not _divides(self.step, self.least_width):
            raise ValueError(f"least_width {self.least_width:g} is not a multiple of step {self.step:g}; change one")
        return self

    def draw(self, by: Suggests, field: str) -> list[float]:
        least, most = self.interval
        last = round(most - self.least_width, DIGITS)
        low = round(by.suggest_float(f"{field}.low", least, last, step=self.step), DIGITS)
        # Rounding must not push the narrowest interval out of the range.
        first = min(round(low + self.least_width, DIGITS), most)
        return [low, round(by.suggest_float(f"{field}.high", first, most, step=self.step), DIGITS)]

    def values(self) -> list[Any]:
        ladder = _ladder(*self.interval, self.step, "interval")
        return [[low, high] for low in ladder for high in ladder if self._wide(low, high)]

    def ends(self) -> list[Any]:
        low, high = self.interval
        narrow = [round(low + self.least_width, DIGITS), round(high - self.least_width, DIGITS)]
        return [[low, high], [low, narrow[0]], [narrow[1], high]]

    def contains(self, value: Any) -> bool:
        if not (isinstance(value, list | tuple) and len(value) == 2 and all(is_number(part) for part in value)):
            return False
        return self._wide(*value) and all(_on_ladder(part, *self.interval, self.step) for part in value)

    def params(self, field: str, value: Any) -> dict[str, Scalar]:
        return {f"{field}.low": float(value[0]), f"{field}.high": float(value[1])}

    def _wide(self, low: float, high: float) -> bool:
        return low <= high and round(high - low, DIGITS) >= self.least_width


KINDS = {"choice": Choice, "uniform": Uniform, "log_uniform": LogUniform, "integer": Integer, "interval": Interval}


def _kind(given: Any) -> str | None:
    fields = given if isinstance(given, Mapping) else getattr(given, "__dict__", {})
    kinds = [kind for kind in KINDS if kind in fields]
    return kinds[0] if len(kinds) == 1 else None


AnyKnob = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("log_uniform")]
    | Annotated[Integer, Tag("integer")]
    | Annotated[Interval, Tag("interval")],
    Discriminator(
        _kind,
        custom_error_type="knob",
        custom_error_message=f"give exactly one of {', '.join(KINDS)}, such as {{choice: [1, 2]}}",
    ),
]


def agrees(given: Any, value: Any) -> bool:
    """Tell whether a value equals the given value; for mappings, whether it has the given fields."""
    if isinstance(given, Mapping) and isinstance(value, Mapping):
        return all(key in value and agrees(part, value[key]) for key, part in given.items())
    return _plain(given) == _plain(value)


def label(value: Any) -> Scalar:
    """Return a value in the form that Optuna and MLflow take: plain values unchanged, others as JSON."""
    return value if isinstance(value, Scalar) else json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_range(kind: str, ends: tuple[float, float], step: float | None) -> None:
    low, high = ends
    if not low < high:
        raise ValueError(f"{kind} [{low:g}, {high:g}] holds nothing to search; give the lower end first")
    if step and not _divides(step, high - low):
        raise ValueError(f"{kind} [{low:g}, {high:g}] is not a whole number of steps of {step:g}; change one of them")


def _divides(step: float, length: float) -> bool:
    return abs(length / step - round(length / step)) < 1e-6


def _on_ladder(value: float, low: float, high: float, step: float | None) -> bool:
    return low <= value <= high and (step is None or _divides(step, value - low))


def _ladder(low: float, high: float, step: float | None, kind: str) -> list[float]:
    if step is None:
        raise ValueError(
            f"{kind} [{low:g}, {high:g}]: a grid needs a finite number of values; give step, or choice: [...]"
        )
    return [round(low + number * step, DIGITS) for number in range(round((high - low) / step) + 1)]
