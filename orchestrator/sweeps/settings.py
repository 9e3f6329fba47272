"""Search: the contents of a sweep file: the space, the search, the objective, and when trials end early."""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from methods.base import ADDED, FrozenConfig, decisive
from orchestrator.config.parts import Seed
from orchestrator.config.refusal import FolderName
from orchestrator.direction import Direction
from orchestrator.sweeps.domains import AnyKnob
from orchestrator.sweeps.objectives import AnyObjective, Objective, TrialCost, with_direction

# Fields that change no result, and fields by which a sweep finds its own folder.
UNSEARCHABLE = ("name", "home", "resources", "tracking")


class Search(FrozenConfig):
    """How points are chosen.

    name     tpe: Optuna's tree of Parzen estimators, which takes trials that still run for bad ones, so that trials
             at once lie apart; gp: Optuna's Gaussian process, for few trials over few fields; cmaes: CMA-ES, for many
             trials over numbers (a choice, and a single field, is drawn at random); nsga2: NSGA-II, for several
             objectives and many trials; random; grid: all in order; pbt: population-based training (Jaderberg et al.,
             "Population Based Training of Neural Networks", 2017): after each segment of the pretraining, the worst
             members copy the weights and the optimiser of one of the best and go on with other values
    startup     tpe, gp, cmaes: how many points are random first
    population  nsga2: how many trials a generation has; the first generation is random. pbt: how many members
    segments    pbt: in how many equal parts the pretraining's steps are trained
    quantile    pbt: the share of the members that copy, and the share of those that are copied
    resample    pbt: the probability that a field is drawn anew; else it is multiplied by 0.8 or 1.2, and a choice
                moves to the one before or after
    """

    name: Literal["tpe", "gp", "cmaes", "nsga2", "random", "grid", "pbt"] = "tpe"
    seed: Seed = 0
    startup: int = Field(default=5, ge=0)
    population: Annotated[int, Field(ge=2), ADDED] = 16
    segments: Annotated[int, Field(ge=2), ADDED] = 4
    quantile: Annotated[float, Field(gt=0, le=0.5), ADDED] = 0.25
    resample: Annotated[float, Field(ge=0, le=1), ADDED] = 0.25

    @property
    def enumerates(self) -> bool:
        """Whether the search itself says how many trials there are."""
        return self.name in ("grid", "pbt")


class Scheduler(FrozenConfig):
    """When to end a trial early, by one of Optuna's pruners.

    name              asha: at steps grace, grace * reduction_factor, ... a trial goes on if it is among the best of
                      the trials that came as far (Li et al., "A System for Massively Parallel Hyperparameter Tuning",
                      2020); hyperband: each trial is in one of several brackets, the first of which is asha, and each
                      of the others begins a reduction_factor later (Li et al., "Hyperband", 2018); median: from
                      ``grace`` steps on it ends if its best is below the median of the finished trials at the same
                      step (Golovin et al., "Google Vizier", 2017)
    metric            a metric of the pretraining's last stage, such as health/effective_rank, that trials are judged
                      by meanwhile although the objective is a score of the fine-tuning: a pretraining that falls
                      behind ends early, and is not fine-tuned. By default it is the objective
    mode              whether higher or lower values of ``metric`` are better; by default the metric's own
    grace             no trial is ended before this many steps of the training that has the metric
    reduction_factor  asha, hyperband: one trial in this many goes on; a whole number
    least_trials      median: how many other trials must have finished, with a value at the same step
    """

    name: Literal["asha", "hyperband", "median", "none"] = "none"
    metric: Annotated[str | None, ADDED] = None
    mode: Annotated[Direction | None, ADDED] = None
    grace: int | None = Field(default=None, gt=0)
    reduction_factor: float = Field(default=3, ge=2, multiple_of=1)
    least_trials: int = Field(default=3, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _better_as_the_metric_is(cls, fields: Any) -> Any:
        return with_direction(fields)

    @model_validator(mode="after")
    def _has_grace(self) -> "Scheduler":
        if self.name != "none" and self.grace is None:
            raise ValueError(f"scheduler {self.name} without grace; give the steps before which no trial is ended")
        if self.name == "none" and self.metric is not None:
            raise ValueError(
                f"scheduler metric {self.metric} without a scheduler; give name: asha, hyperband or median"
            )
        return self


class SweepConfig(FrozenConfig):
    """A sweep file.

    experiment             file of the experiment that every trial changes, relative to the sweep's file
    trials                 how many points to try; a grid tries all of its points
    concurrent             how many trials run at once; by default as many as the cluster holds, or one on a single
                           machine
    start_from_experiment  begin with the experiment's own values, which must lie in the space; a grid ignores this
    also                   further objectives, such as {cost: hours}: the sweep then searches for the Pareto front,
                           the trials that no other trial beats in everything, and ends none early
    seeds                  seeds of the pretraining and the fine-tuning, with each of which every point is trained; a
                           trial's value is the mean over them, and it is ended early by its first seed alone
    """

    name: FolderName
    title: str
    experiment: str
    space: dict[str, AnyKnob] = Field(min_length=1)
    objective: Objective
    also: Annotated[tuple[AnyObjective, ...], ADDED] = ()
    search: Search = Search()
    scheduler: Scheduler = Scheduler()
    trials: int | None = Field(default=None, gt=0)
    concurrent: int | None = Field(default=None, gt=0)
    start_from_experiment: bool = True
    seeds: Annotated[tuple[Seed, ...], ADDED] = ()

    @property
    def objectives(self) -> tuple[Objective | TrialCost, ...]:
        """All that is sought, the objective first."""
        return (self.objective, *self.also)

    @property
    def finetuned(self) -> bool:
        """Whether anything that is sought needs the fine-tuning."""
        return any(isinstance(one, Objective) and one.of == "finetune" for one in self.objectives)

    @model_validator(mode="after")
    def _can_seek_several(self) -> "SweepConfig":
        names = [one.metric for one in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"objective and also name {', '.join(names)}; give each metric once")
        if self.also and self.scheduler.name != "none":
            raise ValueError(
                f"scheduler {self.scheduler.name} with {len(names)} objectives ({', '.join(names)}): a trial that "
                "falls behind in one may lead in another, and no rule ends it; leave the scheduler out, or also"
            )
        if self.also and self.search.name == "cmaes":
            raise ValueError(
                f"search cmaes with {len(names)} objectives ({', '.join(names)}): it seeks one; give nsga2, tpe, gp, "
                "random or grid"
            )
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> "SweepConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds {list(self.seeds)} repeat a seed, and the same run would count twice; give each once"
            )
        for field in self.space:
            if self.seeds and field in ("seed", "downstream.seed"):
                raise ValueError(
                    f"space, {field}: every point is trained with each of seeds; take one of the two out"
                )
        return self

    @model_validator(mode="after")
    def _searchable(self) -> "SweepConfig":
        for field in self.space:
            if {field.split(".")[0], field.removeprefix("downstream.").split(".")[0]} & {*UNSEARCHABLE}:
                raise ValueError(f"space, {field}: it changes no result; search fields that do")
            if not self.finetuned and field.split(".")[0] == "downstream":
                raise ValueError(
                    f"space, {field}: it changes no pretraining; take it out, or set objective.of=finetune"
                )
        if (self.trials is None) != self.search.enumerates:
            leave = {"grid": "tries every point", "pbt": "trains population members in segments"}
            name = self.search.name
            why = f"{leave[name]}; leave it out" if name in leave else "needs a number of trials; give it"
            raise ValueError(f"trials {self.trials}: {name} {why}")
        return self

    @model_validator(mode="after")
    def _suits_a_population(self) -> "SweepConfig":
        if self.search.name != "pbt":
            return self
        given = {"also": self.also, "seeds": self.seeds, "scheduler": self.scheduler.name != "none"}
        for name, value in given.items():
            if value:
                raise ValueError(
                    f"search pbt with {name}: the members themselves are compared, by one objective, and the worst "
                    f"give up their weights; leave {name} out"
                )
        if conditional := [field for field, knob in self.space.items() if knob.when]:
            raise ValueError(
                f"space, {conditional[0]}: when, and search pbt: every member has every field; take one out"
            )
        return self

    @model_validator(mode="after")
    def _comparable(self) -> "SweepConfig":
        of_method = [field for field in self.space if _is_of_method(field)]
        across = [field for field in of_method if field.endswith(("method", "method.name"))]
        for what, metric in self._of_pretraining():
            if across:
                raise ValueError(
                    f"{what} {metric} of the pretraining, and a space over {across[0]}: losses and "
                    "health of different methods are different numbers; judge by a downstream score (of: finetune)"
                )
            if metric == "loss" and of_method:
                raise ValueError(
                    f"{what} loss of the pretraining, and a space over {of_method[0]}: it changes what the "
                    "loss measures, and the easiest task would win; judge by a downstream score, or by collapse"
                )
        return self

    def _of_pretraining(self) -> list[tuple[str, str]]:
        """Return the metrics of the pretraining by which trials are judged, each with what asks for it."""
        sought = [one for one in self.objectives if isinstance(one, Objective)]
        found = [("objective", one.metric) for one in sought if one.of == "pretrain"]
        return found + ([("scheduler metric", self.scheduler.metric)] if self.scheduler.metric else [])

    @model_validator(mode="after")
    def _pretrainings_are_ended_for_a_downstream_score(self) -> "SweepConfig":
        metric = self.scheduler.metric
        if metric is not None and self.objective.of == "pretrain":
            raise ValueError(
                f"scheduler metric {metric} beside an objective of the pretraining, by which trials are ended "
                "anyway; leave scheduler.metric out, or judge by a downstream score (objective of: finetune)"
            )
        if metric is not None and all(field.split(".")[0] == "downstream" for field in self.space):
            raise ValueError(
                f"scheduler metric {metric}, and a space over the fine-tuning alone: all pretrainings would be the "
                "same; leave scheduler.metric out"
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
        told = decisive(self, {"title", "experiment", "trials", "concurrent"})
        # The order of the fields is part of the search.
        told["space"] = list(told["space"].items())
        text = json.dumps({"sweep": told, "experiment": experiment, "digests": list(digests)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _is_of_method(field: str) -> bool:
    """Tell whether a field is the method, or part of it, of the experiment or of one of its stages."""
    first, *others = field.split(".")
    return "method" in ([first] if first != "stages" else others[1:2])
