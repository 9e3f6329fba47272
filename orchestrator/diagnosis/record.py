"""Record: a training as its run's folder tells of it, and the same training built again to be looked at."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from ray.train import Checkpoint
from safetensors.torch import load_file

from data.files import join
from data.shards.index import Selection, ShardSet
from methods.base import Method
from orchestrator.config.experiment import Experiment
from orchestrator.config.optimiser import Optimiser
from orchestrator.config.parts import Downstream, Stage
from orchestrator.feed.plan import FeedPlan
from orchestrator.history import HISTORY, Tail, steps
from orchestrator.runs.course import Course, courses, digest_of
from orchestrator.runs.finetune import STAGE, feed_of, plan_of
from orchestrator.runs.labelled import LabelledSamples, downstream_of, labelled_samples
from orchestrator.runs.network import build_network, prepare
from orchestrator.runs.run import RESULT
from orchestrator.training.checkpoint import METHOD
from orchestrator.training.loop import Plan
from orchestrator.training.resume import StageCheckpoints

EXPERIMENT = "experiment.json"
FINETUNING, PRETRAINING = "finetune-", "pretrain-"
FEWEST_AT_END, SHARE_AT_END = 3, 10


@dataclass(frozen=True)
class TrainingRecord:
    """What a run's folder holds of one training.

    training   the stage, or the downstream task
    steps      its history, a line for each step
    fatal      why it ended before its budget, if it did
    storage    where its checkpoints are
    """

    folder: Path
    experiment: Experiment
    training: Stage | Downstream
    name: str
    steps: list[dict[str, Any]]
    fatal: str | None
    storage: str

    @property
    def optimiser(self) -> Optimiser:
        return self.training.optimiser

    @property
    def config(self) -> Any:
        """The config of the method or the task."""
        return self.training.task if isinstance(self.training, Downstream) else self.training.method

    def values(self, metric: str) -> Float[np.ndarray, " n"]:
        """Return a metric at every step that has it."""
        return np.array([line[metric] for line in self.steps if metric in line], float)

    def ends(self, metric: str) -> tuple[float, float]:
        """Return the median of a metric over the first and over the last tenth of its steps; NaN for no steps."""
        values = self.values(metric)
        count = max(min(FEWEST_AT_END, len(values)), len(values) // SHARE_AT_END)
        if not count:
            return float("nan"), float("nan")
        return float(np.median(values[:count])), float(np.median(values[-count:]))


@dataclass(frozen=True)
class RebuiltTraining:
    """A training built again from its experiment and its shards.

    begun     the method as the training began it
    trained   the same with the weights of the newest whole checkpoint; None where there is none
    shards    the sets that it is fed, each with the selected samples
    labelled  the samples of a fine-tuning
    started   whether the encoder, or a part of it, began with weights that were trained before
    remarks   doubts that were known before it began
    knows_start   False where the weights that it began with are gone, so that ``begun`` is not what it began as
    """

    record: TrainingRecord
    plan: Plan
    feed: FeedPlan
    begun: Method
    trained: Method | None
    shards: tuple[tuple[ShardSet, Selection], ...]
    labelled: LabelledSamples | None
    started: bool
    remarks: tuple[str, ...] = ()
    knows_start: bool = True


def records_of(folder: Path) -> list[TrainingRecord]:
    """Return the trainings that a run's folder tells of; raise ValueError where it is no run's folder."""
    folder = folder.absolute()
    path = folder / EXPERIMENT
    if not path.is_file():
        raise ValueError(
            f"{folder}: no {EXPERIMENT} there; expected the folder of a pretraining or a fine-tuning, such as "
            "runs/NAME/pretrain-KEY or runs/NAME/finetune-KEY"
        )
    experiment = Experiment.model_validate_json(path.read_text())
    is_finetuning = folder.name.startswith(FINETUNING)
    own = experiment.downstream.resources if is_finetuning and experiment.downstream else None
    remote = (own or experiment.resources).storage
    storage = join(remote, folder.name) if remote else str(folder / "checkpoints")
    fatal = {line["stage"]: line["fatal"] for line in Tail(folder / HISTORY).lines() if "fatal" in line}

    def record(name: str, training: Stage | Downstream) -> TrainingRecord:
        found = steps(folder, name)
        return TrainingRecord(folder, experiment, training, name, found, fatal.get(name), storage)

    if is_finetuning:
        return [record(STAGE, downstream_of(experiment))]
    return [record(stage.name, stage) for stage in experiment.pretraining]


def rebuilt(record: TrainingRecord) -> RebuiltTraining:
    """Build a training again; raise ValueError where shards or checkpoints are missing or do not fit."""
    if isinstance(record.training, Downstream):
        return _finetuning(record)
    return _pretraining(record)


def _pretraining(record: TrainingRecord) -> RebuiltTraining:
    stages = courses(record.experiment)
    place = [course.stage.name for course in stages].index(record.name)
    course, before = stages[place], dict(_trained_before(record, stages[:place]))
    begun = course.build(before)
    if begun.needs is not None:
        begun.see_classes(course.samples.classes, course.samples.classes)
    started = bool(course.starts(before)) or course.transfer is not None
    return RebuiltTraining(
        record=record,
        plan=course.plan,
        feed=course.feed,
        begun=begun,
        trained=_trained(record, begun),
        shards=tuple((part.shards, part.selection) for part in course.samples.components),
        labelled=None,
        started=started,
        remarks=tuple(course.doubts()),
    )


def _trained_before(record: TrainingRecord, stages: list[Course]) -> Iterator[tuple[str, str]]:
    """Yield the earlier stages with the addresses of what they trained."""
    for course in stages:
        if newest := StageCheckpoints(join(record.storage, course.stage.name)).find().newest:
            yield course.stage.name, newest.uri


def _finetuning(record: TrainingRecord) -> RebuiltTraining:
    experiment, task = record.experiment, downstream_of(record.experiment)
    labelled = labelled_samples(task)
    encoder = _pretrained(experiment, record.folder.parent) if experiment.hands_over else None
    begun = build_network(experiment, labelled.shards, encoder)
    prepare(begun, experiment, labelled)
    plan = plan_of(experiment, labelled)
    return RebuiltTraining(
        record=record,
        plan=plan,
        feed=feed_of(experiment, labelled, plan),
        begun=begun,
        trained=_trained(record, begun),
        shards=((labelled.shards, labelled.train),),
        labelled=labelled,
        started=experiment.hands_over,
        knows_start=encoder is not None or not experiment.hands_over,
    )


def _pretrained(experiment: Experiment, parent: Path) -> str | None:
    """Return the address of the encoder that a fine-tuning began with; None where its pretraining is gone."""
    folder = parent / f"{PRETRAINING}{experiment.pretrain_key(digest_of(courses(experiment)))}"
    if not (folder / RESULT).exists():
        return None
    address: str = json.loads((folder / RESULT).read_text())["encoder"]
    return address if "://" in address else str(folder / address)


def _trained(record: TrainingRecord, begun: Method) -> Method | None:
    """Return a copy of a method with the weights of the newest checkpoint; None where there is none."""
    newest = StageCheckpoints(join(record.storage, record.name)).find().newest
    if newest is None:
        return None
    with Checkpoint(newest.uri).as_directory() as folder:
        state: Mapping[str, torch.Tensor] = load_file(Path(folder) / METHOD)
    trained = deepcopy(begun)
    trained.load_state_dict(state)
    return trained
