"""Earlier: how long the steps of a finished training of the same kind took, as the history of its run has it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import Downstream, Stage
from orchestrator.history import steps
from orchestrator.runs.run import RESULT

LEAST_STEPS = 20
# Workers start and open shards before the first step.
SKIPPED = 3


@dataclass(frozen=True)
class EarlierRun:
    """A finished run's name and its mean seconds per step, with the validations and checkpoints between steps."""

    name: str
    step_s: float


def earlier_run(experiment: Experiment, training: Stage | Downstream) -> EarlierRun | None:
    """Return the newest finished run of the home that trained alike, on as many workers, if there is one."""
    finetuned = isinstance(training, Downstream)
    stage = "finetune" if finetuned else training.name
    folders = Path(experiment.home).glob(f"*/{'finetune' if finetuned else 'pretrain'}-*/{RESULT}")
    wanted = _kind(experiment, training)
    for result in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        if any(_kind(other, one) == wanted for other, one in _trainings(result.parent, finetuned)):
            entries = steps(result.parent, stage)[SKIPPED:]
            if len(entries) >= LEAST_STEPS:
                seconds = [training.budget.batch_size / entry["samples_per_s"] for entry in entries]
                return EarlierRun(result.parent.name, sum(seconds) / len(seconds))
    return None


def _trainings(folder: Path, finetuned: bool) -> Iterator[tuple[Experiment, Stage | Downstream]]:
    """Yield a run's trainings; none of a run whose fields an older version named otherwise."""
    try:
        experiment = Experiment.model_validate_json((folder / "experiment.json").read_bytes())
    except (OSError, ValidationError):
        return
    for one in experiment.trainings:
        if isinstance(one, Downstream) == finetuned:
            yield experiment, one


def _kind(experiment: Experiment, training: Stage | Downstream) -> tuple[object, ...]:
    """Return all of a training that its steps' time depends on, but for the machine."""
    shares, settings = experiment.shares_of(training), experiment.training
    common = (shares, experiment.resources_of(training).gpu, settings.precision)
    if isinstance(training, Downstream):
        return (training.task, experiment.downstream_encoder, training.shards, training.label_fraction, *common)
    method, encoder = training.method, experiment.encoder_of(training)
    return (training.name, method, encoder, experiment.data_of(training), *common)
