"""Fingerprint: the facts of shards and of a machine that a first experiment depends on.

As nnU-Net reads a dataset's fingerprint before it configures itself. Nothing is decided here.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import psutil
import torch
from jaxtyping import Int64

from data.labels import BOXES, CLASSES, LABEL_MAP, Labels
from data.shards.classes import count_classes
from data.shards.index import ShardSet

TaskKind = Literal["segmentation", "detection", "one class", "several classes"]


@dataclass(frozen=True)
class Machine:
    """The hardware to train with; ``gpu_bytes`` is the memory of the smallest GPU."""

    cores: int
    free_bytes: int
    gpus: int = 0
    gpu_bytes: int = 0

    @classmethod
    def here(cls) -> "Machine":
        """Describe this machine."""
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(gpus)]
        return cls(len(os.sched_getaffinity(0)), psutil.virtual_memory().available, gpus, min(sizes, default=0))

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}, {self.free_bytes / 2**30:.0f} GiB of free memory"
        return f"{cores}, {_gpus(self)}"


@dataclass(frozen=True)
class Fingerprint:
    """The samples that a pretraining is fed.

    split     whose samples they are; None for all
    extents   (n, nd) their spatial sizes
    min_size  smaller samples along any axis are left out, ``num_small`` in all
    """

    uri: str
    split: str | None
    num_channels: int
    modalities: tuple[str, ...]
    extents: Int64[np.ndarray, "n nd"]
    min_size: tuple[int, ...] | None = None
    num_small: int = 0

    @classmethod
    def of(cls, shards: ShardSet) -> "Fingerprint":
        """Read the fingerprint of the training samples, or of all samples where there is no training split."""
        split = "train" if shards.select("train").num_samples else None
        extents = shards.select(split).extents
        if len(extents) < 2:
            raise ValueError(
                f"shards {shards.uri}: {len(extents)} samples to pretrain on, expected at least 2; ingest more scans"
            )
        found = sorted({str(name) for name in shards.rows["modality"].unique().to_pylist() if name})
        return cls(shards.uri, split, shards.num_channels, tuple(found), extents)

    def at_least(self, size: tuple[int, ...]) -> "Fingerprint":
        """Return the fingerprint of the samples that have at least this size along each axis."""
        kept = self.extents[(self.extents >= np.array(size)).all(axis=1)]
        return replace(self, extents=kept, min_size=size, num_small=self.num_samples - len(kept))

    @property
    def spatial_dims(self) -> int:
        return self.extents.shape[1]

    @property
    def num_samples(self) -> int:
        return len(self.extents)

    @property
    def smallest(self) -> tuple[int, ...]:
        """The smallest size along each axis."""
        return tuple(self.extents.min(axis=0).tolist())

    @property
    def median(self) -> tuple[int, ...]:
        """The median size along each axis."""
        return tuple(int(length) for length in np.median(self.extents, axis=0))

    def __str__(self) -> str:
        channels = f"{self.num_channels} channel{'s' if self.num_channels > 1 else ''}"
        largest = tuple(self.extents.max(axis=0).tolist())
        sizes = f"from {by(self.smallest)} to {by(largest)} voxels, median {by(self.median)}"
        if largest == self.smallest:
            sizes = f"all {by(largest)}"
        modality = f" of {', '.join(self.modalities)}" if self.modalities else ""
        return f"{self.num_samples:,} samples{modality}, {self.spatial_dims}D, {channels}, {sizes}"


def _classification(shards: ShardSet) -> TaskKind:
    lengths = {len(row) for row in shards.rows["classes"].to_pylist() if row is not None}
    return "one class" if lengths == {1} else "several classes"


# The labels that an encoder can be judged by, the best first, and the tasks that learn them.
_TASKS: dict[Labels, Callable[[ShardSet], TaskKind]] = {
    LABEL_MAP: lambda shards: "segmentation",
    BOXES: lambda shards: "detection",
    CLASSES: _classification,
}


class TooFewLabelsError(ValueError):
    """Labelled samples that cannot both be learnt from and judge."""


@dataclass(frozen=True)
class LabelFacts:
    """The labelled samples that an encoder is judged by.

    names      of label values, of classes, or of the classes of boxes, by their numbers
    extents    (n, nd) spatial sizes of those that are trained on
    counts     of the classes, or of the boxes of each class, that are trained on
    num_folds  where no split holds samples back: parts of the training patients, of which one is
    judged     how many classes the samples have that are held back
    """

    uri: str
    num_channels: int
    task: TaskKind
    names: dict[int, str]
    extents: Int64[np.ndarray, "n nd"]
    counts: dict[int, int]
    num_val: int
    num_folds: int | None
    judged: int

    @classmethod
    def of(cls, shards: ShardSet) -> "LabelFacts | None":
        """Read the facts of the labelled samples, None where there are none.

        Label maps come before boxes, and boxes before classes. Raises TooFewLabelsError where none can be learnt
        from, or none held back.
        """
        rows = shards.rows
        found = [kind for kind in _TASKS if shards.names_of(kind) and kind.held(rows).any()]
        if not found:
            return None
        needs = found[0]
        train, val = shards.select("train", having=needs), shards.select("val", having=needs)
        classes = rows[needs.strata].take(train.row_ids)
        patients, judging = len(shards.patients(train)), len(shards.patients(val))
        if patients < (1 if judging else 2):
            raise TooFewLabelsError(
                f"shards {shards.uri}: labelled patients: {patients} in split train, {judging} in val; expected at "
                "least 1 in each, or 2 in train, so that an encoder is judged on other patients than it learns from; "
                "ingest more labelled scans"
            )
        held = val if val.num_samples else train
        return cls(
            uri=shards.uri,
            num_channels=shards.num_channels,
            task=_TASKS[needs](shards),
            names=shards.names_of(needs),
            extents=train.extents,
            counts=count_classes(classes),
            num_val=val.num_samples,
            num_folds=None if val.num_samples else min(5, patients),
            judged=len(count_classes(rows[needs.strata].take(held.row_ids))),
        )

    @property
    def num_train(self) -> int:
        return len(self.extents)

    @property
    def median(self) -> tuple[int, ...]:
        """The median size of the training samples along each axis."""
        return tuple(int(length) for length in np.median(self.extents, axis=0))


def by(size: tuple[int, ...] | list[int]) -> str:
    """Write a size for people."""
    return " x ".join(map(str, size))


def _gpus(machine: Machine) -> str:
    if not machine.gpus:
        return "no GPU"
    return f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''} of {machine.gpu_bytes / 2**30:.0f} GiB"
