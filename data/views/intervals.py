"""Intervals from which the parameters of augmentations are drawn uniformly, and probabilities, as config fields."""

from typing import Annotated

from pydantic import AfterValidator, Field


def _in_order(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"interval {list(interval)}: expected low <= high; swap the two")
    return interval


Interval = Annotated[tuple[float, float], AfterValidator(_in_order)]
Factor = Annotated[float, Field(gt=0)]
Deviation = Annotated[float, Field(ge=0)]
Factors = Annotated[tuple[Factor, Factor], AfterValidator(_in_order)]
Deviations = Annotated[tuple[Deviation, Deviation], AfterValidator(_in_order)]
Probability = Annotated[float, Field(ge=0, le=1)]
