"""Exchange: what an experiment must be for a population to copy weights between its members, and change fields."""

import torch
from torch import Tensor

from data.spelling import did_you_mean
from orchestrator.config.experiment import Experiment
from orchestrator.config.refusal import ConfigError
from orchestrator.runs.course import Course
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.sweeps.watching import pretraining_curve

# Settings of the optimiser that hold no state and are read anew at each step, or set when a checkpoint is read.
OF_OPTIMISER = (
    "lr",
    "final_lr",
    "weight_decay",
    "final_weight_decay",
    "momentum",
    "betas",
    "clip_norm",
    "trust_coefficient",
)


def check_base(config: SweepConfig, base: Experiment, source: str) -> int:
    """Return the steps of the pretraining; raise ConfigError if a population cannot train it in segments."""
    if base.stages:
        raise ConfigError(f"{source}, search pbt: the experiment has stages; expected one method")
    if not base.trains:
        raise ConfigError(f"{source}, search pbt: the experiment pretrains nothing; name one that does")
    for field in config.space:
        section, _, name = field.partition(".")
        if section == "optimiser" and name.split(".")[0] not in OF_OPTIMISER:
            raise ConfigError(
                f"{source}, space, {field}: it cannot change while a training goes on; expected fields of the "
                f"method, or optimiser.{', optimiser.'.join(OF_OPTIMISER)}{did_you_mean(name, OF_OPTIMISER)}"
            )
        if section not in ("optimiser", "method") or field in ("method", "method.name"):
            raise ConfigError(
                f"{source}, space, {field}: it cannot change while a training goes on; expected fields of the method "
                "or the optimiser; search others by another search"
            )
    search, metric = config.search, config.objective.metric
    steps = Course.open(base).plan.total_steps
    if steps < search.segments:
        raise ConfigError(
            f"{source}, search.segments {search.segments}: the pretraining has {steps} steps; give fewer"
        )
    if config.objective.of == "pretrain" and pretraining_curve(base, metric).every == 1:
        of = metric.partition("/")[0]
        measured = {"health": base.health.times, "probe": base.probe.times if base.probe else 0}.get(of)
        if measured is not None and (measured == 0 or measured % search.segments):
            raise ConfigError(
                f"{source}, objective {metric}: {of}.times is {measured}, and each of {search.segments} segments "
                f"must end with a measurement; set {of}.times={search.segments}"
            )
    return steps


def check_same_state(field: str, experiments: list[Experiment], source: str) -> None:
    """Raise ConfigError if what is trained depends on a field, so that a copy would not fit or undo the change."""
    first, *others = (_initial_state(one) for one in experiments)
    for other in others:
        if first.keys() != other.keys() or not all(_equal(value, other[name]) for name, value in first.items()):
            raise ConfigError(
                f"{source}, space, {field}: the weights and buffers that training begins with depend on it, so that "
                "it cannot change while a training goes on; search it by another search"
            )


def _initial_state(experiment: Experiment) -> dict[str, Tensor]:
    return dict(Course.open(experiment).build({}).state_dict())


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def ends_of(config: SweepConfig, steps: int) -> list[int]:
    """Return the step after which each segment ends."""
    return [steps * (place + 1) // config.search.segments for place in range(config.search.segments)]
