"""Labelled: the samples that a fine-tuning is trained on, validated on and tested on."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from data.shards.classes import pad_classes
from data.shards.index import Selection, ShardSet
from data.splits import folds, label_fraction
from methods.downstream import TASKS
from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import Downstream

# Which patients a label fraction or a fold holds does not change with the seed: repeats differ only in training.
LABEL_SEED = 0


@dataclass(frozen=True)
class LabelledSamples:
    """The labelled samples of a fine-tuning: those for training, for validation, and for the test at the end."""

    shards: ShardSet
    train: Selection
    val: Selection
    patients: tuple[str, ...]
    test: Selection | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many samples and patients are trained on."""
        return {"samples": self.train.num_samples, "patients": self.shards.num_patients(self.train)}


def downstream_of(experiment: Experiment) -> Downstream:
    """Return the experiment's downstream task; raise ValueError if it has none."""
    if experiment.downstream is None:
        raise ValueError(f"experiment {experiment.name}: no downstream task; add downstream: with task and shards")
    return experiment.downstream


def labelled_samples(task: Downstream) -> LabelledSamples:
    """Select labelled samples of (a fraction of) the training patients, and those to validate and to test on."""
    shards, having = ShardSet.open(task.shards), TASKS[task.task.name].needs
    everyone = _patients(shards, task.train_split, task)
    held_out = folds(everyone, task.num_folds, LABEL_SEED)[task.fold] if task.num_folds else frozenset[str]()
    learnt = {patient: stratum for patient, stratum in everyone.items() if patient not in held_out}
    patients = tuple(sorted(label_fraction(learnt, task.label_fraction, LABEL_SEED)))
    val = tuple(sorted(held_out or _patients(shards, task.val_split, task)))
    return LabelledSamples(
        shards,
        task.kept(shards, task.train_split, patients, having),
        task.kept(shards, task.train_split if held_out else task.val_split, val, having),
        patients,
        None if task.test_split is None else _selected(shards, task.test_split, task),
    )


def _patients(shards: ShardSet, split: str, task: Downstream) -> Mapping[str, Hashable]:
    """Return a split's labelled patients with the classes that their samples have; raise ValueError for none."""
    return shards.patients(_selected(shards, split, task), TASKS[task.task.name].needs)


def _selected(shards: ShardSet, split: str, task: Downstream) -> Selection:
    """Select a split's labelled samples; raise ValueError for none."""
    needs = TASKS[task.task.name].needs
    selection = task.kept(shards, split, having=needs)
    if selection.num_samples == 0:
        raise ValueError(
            f"shards {task.shards}: 0 samples with {needs.each} in split {split!r}, expected at least 1; see "
            "`raydiology shards show`, and choose downstream.train_split, downstream.val_split and "
            "downstream.test_split"
        )
    return selection


def classes_of(labelled: LabelledSamples, selection: Selection) -> Int64[np.ndarray, "n m"]:
    """Return the classes of some of the samples, padded with -1."""
    return pad_classes(labelled.shards.rows["classes"].take(selection.row_ids))
