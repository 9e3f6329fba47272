"""Work: what the trainings of an experiment have done so far, as their histories tell it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.shards.index import ShardSet
from orchestrator import history
from orchestrator.config.experiment import Experiment
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.course import courses
from orchestrator.runs.segment import Segment

HOUR_S = 3600


@dataclass(frozen=True)
class TrainingWork:
    """A training: the steps that were done of those that were planned.

    seconds  in which the steps were trained, whoever trained them, without start and validation
    workers  that trained at once
    """

    kind: Literal["pretrain", "finetune"]
    steps: int
    planned: int
    seconds: float
    workers: int = 1

    @property
    def hours(self) -> float:
        """Hours of all workers together: GPU hours where each has a GPU."""
        return self.seconds * self.workers / HOUR_S


def work_of(
    experiment: Experiment, finetuned: bool, segment: Segment | None = None, pretrained: bool = True
) -> list[TrainingWork]:
    """Return the trainings of an experiment as their histories tell them."""
    found = [*_pretraining(experiment, segment)] if experiment.hands_over and pretrained else []
    if finetuned:
        task = finetune.downstream_of(experiment)
        planned = finetune.plan_of(experiment, finetune.labelled_samples(task)).total_steps
        workers = experiment.resources_of(task).workers
        folder = finetuning_folder(experiment, pretrained, segment)
        steps, seconds = _trained(folder, finetune.STAGE, task.budget.batch_size)
        found.append(TrainingWork("finetune", steps, planned, seconds, workers))
    return found


def _pretraining(experiment: Experiment, segment: Segment | None) -> Iterator[TrainingWork]:
    folder = pretrain.folder_of(experiment, segment)
    for course in courses(experiment):
        if course.trains:
            steps, seconds = _trained(folder, course.stage.name, course.stage.budget.batch_size)
            workers = experiment.resources_of(course.stage).workers
            planned = segment.until - segment.begin if segment else course.plan.total_steps
            yield TrainingWork("pretrain", steps, planned, seconds, workers)


def _trained(folder: Path, stage: str, batch_size: int) -> tuple[int, float]:
    lines = history.steps(folder, stage)
    return len(lines), sum(batch_size / line["samples_per_s"] for line in lines)


def finetuning_folder(experiment: Experiment, pretrained: bool = True, segment: Segment | None = None) -> Path:
    """Return the folder of a fine-tuning on its shards as they are, after a pretraining, its segment, or neither."""
    start = "scratch"
    if pretrained and experiment.hands_over:
        start = pretrain.folder_of(experiment, segment).name.removeprefix(pretrain.PREFIX)
    key = experiment.finetune_key(start, ShardSet.open(finetune.downstream_of(experiment).shards).digest)
    return Path(experiment.home) / experiment.name / f"finetune-{key}"
