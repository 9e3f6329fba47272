"""Objectives: what a sweep seeks: scores of trainings, and what they cost."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from methods.base import FrozenConfig
from orchestrator.direction import Direction, direction_of


class Objective(FrozenConfig):
    """The number that tells trials apart: a metric of the fine-tuning, or of the pretraining's last stage.

    For a fine-tuning it is the best checkpoint's value. For a pretraining it is the mean over the last hundredth of
    its steps, which only compares pretrainings by one method. ``mode`` says whether higher or lower is better; by
    default it is the metric's own.
    """

    metric: str
    mode: Direction = "max"
    of: Literal["finetune", "pretrain"] = "finetune"

    @model_validator(mode="before")
    @classmethod
    def _better_as_the_metric_is(cls, fields: Any) -> Any:
        return with_direction(fields)


def with_direction(fields: Any) -> Any:
    """Return a metric's fields, completed by its own direction; raise ValueError if it has none."""
    match fields:
        case {"metric": str(metric)} if "mode" not in fields:
            if (direction := direction_of(metric)) is None:
                raise ValueError(f"metric {metric}: higher or lower may be better; give mode: max or mode: min")
            return {**fields, "mode": direction}
        case _:
            return fields


class TrialCost(FrozenConfig):
    """What a trial costs, as a further objective, of which less is better.

    cost   hours: in which its steps are trained, times the workers: GPU hours where each worker has a GPU. Trainings
           that other runs have done already count as if they were done anew
    """

    cost: Literal["hours"]

    @property
    def metric(self) -> str:
        """The name of its column."""
        return self.cost

    @property
    def mode(self) -> Direction:
        """Less is better."""
        return "min"


def _kind(given: Any) -> str:
    fields = given if isinstance(given, Mapping) else getattr(given, "__dict__", {})
    return "cost" if "cost" in fields else "score"


AnyObjective = Annotated[Annotated[Objective, Tag("score")] | Annotated[TrialCost, Tag("cost")], Discriminator(_kind)]
