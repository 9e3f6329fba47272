"""Diagnosis: every cause that a run's folder shows, and what was looked at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.shards.writer import ShardError
from methods.base import LOSS_OF_CONSTANT
from orchestrator.config.parts import TRAINABLE, Downstream
from orchestrator.diagnosis import curves, inputs, labels, weights
from orchestrator.diagnosis.cause import Cause
from orchestrator.diagnosis.look import SecondLook
from orchestrator.diagnosis.record import RebuiltTraining, TrainingRecord, rebuilt, records_of
from orchestrator.training.checkpoint import CheckpointError
from orchestrator.training.resume import DamageError

SHORT_EPOCHS, SHORT_STEPS = 0.1, 100


@dataclass(frozen=True)
class Diagnosis:
    """What was found in one training.

    name     of the stage, or ``finetune``
    seen     what was looked at, in words
    unseen   why something could not be looked at; empty where everything could
    """

    name: str
    causes: tuple[Cause, ...]
    seen: str
    unseen: str = ""


def diagnose(folder: Path) -> list[Diagnosis]:
    """Return a diagnosis of each training of a run; raise ValueError where the folder is no run's."""
    return [_diagnosed(record) for record in records_of(folder) if _trains(record)]


def _trains(record: TrainingRecord) -> bool:
    return isinstance(record.training, Downstream) or TRAINABLE[record.config.name].trains


def _diagnosed(record: TrainingRecord) -> Diagnosis:
    found, seen = [*curves.causes(record)], _steps_seen(record)
    try:
        training = rebuilt(record)
        look = SecondLook.at(training)
    except (ShardError, CheckpointError, DamageError, OSError) as error:
        reason = " ".join(str(error).split())
        return Diagnosis(record.name, _once(found), seen, f"samples and weights: {reason}")
    for about in _checks(training, look):
        found += about()
    if not found:
        found = [*curves.at_the_constant(record)]
    checkpoint = "the newest checkpoint" if training.trained is not None else "the initial weights (no checkpoint)"
    return Diagnosis(record.name, _once(found), f"{seen}, {len(look.batch)} samples drawn again, {checkpoint}")


def _checks(training: RebuiltTraining, look: SecondLook) -> tuple[Callable[[], Iterator[Cause]], ...]:
    return (
        lambda: _doubted(training),
        lambda: labels.causes(training),
        lambda: inputs.causes(look),
        lambda: weights.causes(look),
        lambda: _short(training),
    )


def _once(found: list[Cause]) -> tuple[Cause, ...]:
    """Return the first cause of each name."""
    return tuple(
        {cause.name: cause for cause in reversed(found)}[name] for name in dict.fromkeys(c.name for c in found)
    )


def _steps_seen(record: TrainingRecord) -> str:
    """Say how the loss went, beside that of the best constant prediction."""
    first, last = record.ends("loss")
    if not record.steps:
        return "no step was logged"
    constants = record.values(LOSS_OF_CONSTANT)
    beside = f" (best constant prediction: {record.ends(LOSS_OF_CONSTANT)[1]:.4g})" if len(constants) else ""
    return f"{len(record.steps):,} steps, loss {first:.4g} to {last:.4g}{beside}"


def _doubted(training: RebuiltTraining) -> Iterator[Cause]:
    """Yield what was known before the training began."""
    for remark in training.remarks:
        shown, _, remedy = remark.removeprefix(f"stage {training.record.name}: ").rpartition("; ")
        yield Cause("doubted before it began", shown or remark, remedy)


def _short(training: RebuiltTraining) -> Iterator[Cause]:
    plan = training.plan
    epochs = plan.total_steps * plan.stream.batch_size / plan.num_samples
    if epochs < SHORT_EPOCHS and plan.total_steps < SHORT_STEPS:
        yield Cause(
            "budget too short",
            f"{plan.total_steps} steps are {epochs:.2g} epochs of {plan.num_samples:,} samples; expected an epoch, "
            f"or {SHORT_STEPS} steps",
            "raise the budget",
        )
