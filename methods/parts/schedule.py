"""Schedules: how a number, such as the learning rate or a teacher's momentum, changes over a budget."""

import math
from typing import Any, Literal

from pydantic import AfterValidator, Discriminator, Field

from methods.base import FrozenConfig

WarmUp = Literal["above_zero", "from_zero", "zero_to_peak"]


class Ramp(FrozenConfig):
    """A number of a method that goes from ``start`` to ``end``, and stays there.

    over    the share of the budget that the way takes
    shape   linear, half a cosine, or one step at the end of the way
    """

    start: float
    end: float
    over: float = Field(default=1.0, gt=0, le=1)
    shape: Literal["cosine", "linear", "step"] = "cosine"


def _form(value: Any) -> str:
    return "ramp" if isinstance(value, Ramp | dict) else "number"


# Tells the members of a union apart that are tagged "number" and "ramp".
BY_FORM = Discriminator(_form)


def within(low: float, high: float) -> AfterValidator:
    """Return a validator that refuses a ramp that leaves [``low``, ``high``]."""

    def check(ramp: Ramp) -> Ramp:
        for name, value in (("start", ramp.start), ("end", ramp.end)):
            if not low <= value <= high:
                raise ValueError(f"{name} {value:g} lies outside [{low:g}, {high:g}]; give a number inside")
        return ramp

    return AfterValidator(check)


def value_at(scalar: float | Ramp, progress: float) -> float:
    """Return a scheduled number at the share ``progress`` of the budget, in [0, 1]."""
    if not isinstance(scalar, Ramp):
        return scalar
    way = min(1.0, progress / scalar.over)
    if scalar.shape == "step":
        return scalar.end if way == 1 else scalar.start
    fall = cosine if scalar.shape == "cosine" else linear
    return fall(scalar.start, scalar.end, way)


def cosine(first: float, last: float, progress: float) -> float:
    """Return the number at a share of the way from ``first`` to ``last`` along half a cosine.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(first: float, last: float, progress: float) -> float:
    """Return the number at a share of the straight way from ``first`` to ``last``."""
    return poly(first, last, progress, power=1.0)


def poly(first: float, last: float, progress: float, power: float) -> float:
    """Return the number at a share of the way from ``first`` to ``last`` along a power of what is left of it."""
    return last + (first - last) * (1 - progress) ** power


def warm_up(step: int, steps: int, lr: float, shape: WarmUp) -> float:
    """Return the rate at ``step`` (0-based) of a linear warm-up of ``steps``.

    ``above_zero`` rises from ``lr / steps`` and reaches ``lr`` at the last step of the warm-up. ``from_zero`` begins
    at 0 and reaches ``lr`` one step after the warm-up: VoCo's released pretraining (MONAI's WarmupCosineSchedule).
    ``zero_to_peak`` begins at 0 and reaches ``lr`` at the last step of the warm-up: the released fine-tunings of VoCo
    and of the thesis on IoU-based positives. Both released shapes spend their first step at a rate of 0.
    """
    if shape == "from_zero":
        return lr * step / steps
    if shape == "zero_to_peak":
        return lr * step / max(1, steps - 1)
    return lr * (step + 1) / steps
