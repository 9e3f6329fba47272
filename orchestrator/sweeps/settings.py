"""Search: the contents of a sweep file: the space, the search, the objective, and when trials end early."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from methods.base import FrozenConfig
from orchestrator.config.parts import Seed
from orchestrator.config.refusal import FolderName
from orchestrator.direction import Direction, direction_of
from orchestrator.sweeps.domains import AnyKnob

# Fields that change no result, and fields by which a sweep finds its own folder.
UNSEARCHABLE = ("name", "home", "resources", "tracking")


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
        match fields:
            case {"metric": str(metric)} if "mode" not in fields:
                if (direction := direction_of(metric)) is None:
                    raise ValueError(f"metric {metric}: higher or lower may be better; give mode: max or mode: min")
                return {**fields, "mode": direction}
            case _:
                return fields


class Search(FrozenConfig):
    """How points are chosen.

    name     tpe: Optuna's tree of Parzen estimators, which takes trials that still run for bad ones, so that trials
             at once lie apart; gp: Optuna's Gaussian process, for few trials over few fields; cmaes: CMA-ES, for many
             trials over numbers (a choice, and a single field, is drawn at random); random; grid: all in order
    startup  tpe, gp, cmaes: how many points are random first
    """

    name: Literal["tpe", "gp", "cmaes", "random", "grid"] = "tpe"
    seed: Seed = 0
    startup: int = Field(default=5, ge=0)


class Scheduler(FrozenConfig):
    """When to end a trial early, by one of Optuna's pruners.

    name              asha: at steps grace, grace * reduction_factor, ... a trial goes on if it is among the best of
                      the trials that came as far (Li et al., "A System for Massively Parallel Hyperparameter Tuning",
                      2020); hyperband: each trial is in one of several brackets, the first of which is asha, and each
                      of the others begins a reduction_factor later (Li et al., "Hyperband", 2018); median: from
                      ``grace`` steps on it ends if its best is below the median of the finished trials at the same
                      step (Golovin et al., "Google Vizier", 2017)
    grace             no trial is ended before this many steps of the training that has the objective
    reduction_factor  asha, hyperband: one trial in this many goes on; a whole number
    least_trials      median: how many other trials must have finished, with a value at the same step
    """

    name: Literal["asha", "hyperband", "median", "none"] = "none"
    grace: int | None = Field(default=None, gt=0)
    reduction_factor: float = Field(default=3, ge=2, multiple_of=1)
    least_trials: int = Field(default=3, gt=0)

    @model_validator(mode="after")
    def _has_grace(self) -> "Scheduler":
        if self.name != "none" and self.grace is None:
            raise ValueError(f"scheduler {self.name} without grace; give the steps before which no trial is ended")
        return self


class SweepConfig(FrozenConfig):
    """A sweep file.

    experiment             file of the experiment that every trial changes, relative to the sweep's file
    trials                 how many points to try; a grid tries all of its points
    concurrent             how many trials run at once; by default as many as the cluster holds, or one on a single
                           machine
    start_from_experiment  begin with the experiment's own values, which must lie in the space; a grid ignores this
    """

    name: FolderName
    title: str
    experiment: str
    space: dict[str, AnyKnob] = Field(min_length=1)
    objective: Objective
    search: Search = Search()
    scheduler: Scheduler = Scheduler()
    trials: int | None = Field(default=None, gt=0)
    concurrent: int | None = Field(default=None, gt=0)
    start_from_experiment: bool = True

    @model_validator(mode="after")
    def _searchable(self) -> "SweepConfig":
        for field in self.space:
            if {field.split(".")[0], field.removeprefix("downstream.").split(".")[0]} & {*UNSEARCHABLE}:
                raise ValueError(f"space, {field}: it changes no result; search fields that do")
            if self.objective.of == "pretrain" and field.split(".")[0] == "downstream":
                raise ValueError(
                    f"space, {field}: it changes no pretraining; take it out, or set objective.of=finetune"
                )
        if (self.trials is None) != (self.search.name == "grid"):
            raise ValueError(
                f"trials {self.trials}: {self.search.name} "
                + (
                    "tries every point; leave it out"
                    if self.search.name == "grid"
                    else "needs a number of trials; give it"
                )
            )
        return self

    @model_validator(mode="after")
    def _comparable(self) -> "SweepConfig":
        of_method = [field for field in self.space if _is_of_method(field)]
        across = [field for field in of_method if field.endswith(("method", "method.name"))]
        if self.objective.of == "pretrain" and across:
            raise ValueError(
                f"objective {self.objective.metric} of the pretraining, and a space over {across[0]}: losses and "
                "health of different methods are different numbers; judge by a downstream score (of: finetune)"
            )
        if self.objective.of == "pretrain" and self.objective.metric == "loss" and of_method:
            raise ValueError(
                f"objective loss of the pretraining, and a space over {of_method[0]}: it changes what the "
                "loss measures, and the easiest task would win; judge by a downstream score, or by collapse"
            )
        return self

    @model_validator(mode="after")
    def _conditions_come_first(self) -> "SweepConfig":
        fields = list(self.space)
        for number, (field, knob) in enumerate(self.space.items()):
            late = [other for other in knob.when if other in fields[number:]]
            if late:
                raise ValueError(f"space, {field}: when names {late[0]}, which comes later; move that up")
        for number, field in enumerate(fields):
            below = [other for other in fields[number:] if field.startswith(f"{other}.")]
            if below:
                raise ValueError(f"space, {field}: {below[0]} comes later and would replace it; move it up")
        return self

    def key(self, experiment: dict[str, Any], digests: Sequence[str]) -> str:
        """Name the sweep by the settings that decide its points: more trials continue it, a new space renames it."""
        told = self.model_dump(mode="json", exclude={"title", "experiment", "trials", "concurrent"})
        # The order of the fields is part of the search.
        told["space"] = list(told["space"].items())
        text = json.dumps({"sweep": told, "experiment": experiment, "digests": list(digests)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _is_of_method(field: str) -> bool:
    """Tell whether a field is the method, or part of it, of the experiment or of one of its stages."""
    first, *others = field.split(".")
    return "method" in ([first] if first != "stages" else others[1:2])
