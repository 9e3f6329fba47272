"""Proposal: decide the numbers of a first experiment from the fingerprint, the labels and the machine.

Each choice is a number with its reason, which is written beside it. Pure: nothing is read, run or written here.
"""

from dataclasses import dataclass
from math import ceil, factorial, prod
from typing import Any

import numpy as np

from data.views.boxes import BoxPairs
from orchestrator.proposal.fingerprint import Fingerprint, LabelFacts, Machine, by

IOU = (0.3, 0.6)
STRIDE = 16  # of the U-Net
LEAST_CELL = 4  # voxels of a puzzle's cell along an axis
ENOUGH_VALIDATIONS = 4
SMALL_SHARE = 0.05


@dataclass(frozen=True)
class ReasonedValue:
    """A value and why it was chosen."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Size:
    """How large a training may be on a kind of machine.

    features             channels of the U-Net
    crop, task_crop      most voxels per axis, in a pretraining and in a segmentation
    batch, task_batch    most samples for each worker
    steps, task_steps    steps of a pretraining and of a fine-tuning
    """

    features: tuple[int, ...]
    crop: int
    task_crop: int
    batch: int
    task_batch: int
    steps: int
    task_steps: int


ON_CPU = {
    2: Size((16, 32, 32, 64, 64, 16), crop=96, task_crop=96, batch=16, task_batch=8, steps=150, task_steps=150),
    3: Size((16, 16, 32, 32, 64, 16), crop=32, task_crop=48, batch=4, task_batch=2, steps=100, task_steps=60),
}
_WIDE = (32, 32, 64, 128, 256, 32)
ON_GPU = {
    2: Size(_WIDE, crop=128, task_crop=128, batch=128, task_batch=32, steps=20_000, task_steps=5_000),
    3: Size(_WIDE, crop=96, task_crop=96, batch=16, task_batch=4, steps=20_000, task_steps=5_000),
}


@dataclass(frozen=True)
class Pretraining:
    """A row of a table: its name, and its method and optimiser as in an experiment."""

    row: str
    method: dict[str, Any]
    optimiser: dict[str, Any]
    reason: str


def size_of(fingerprint: Fingerprint, machine: Machine) -> Size:
    """Return how large a training may be here."""
    return (ON_GPU if machine.gpus else ON_CPU)[fingerprint.spatial_dims]


def crop_of(fingerprint: Fingerprint, most: int) -> ReasonedValue | None:
    """Choose the crop of a pretraining: two thirds of the smallest sample; None if no such crop fits.

    Along each axis it is a multiple of the U-Net's stride. Two crops of every sample must be able to meet the IoU
    interval, and the coarsest map must have more than one voxel.
    """
    smallest = fingerprint.smallest
    if min(smallest) < STRIDE:
        return None
    crop = [min(most, max(STRIDE, length * 2 // 3 // STRIDE * STRIDE)) for length in smallest]
    extents = [tuple(extent) for extent in np.unique(fingerprint.extents, axis=0).tolist()]
    while max(crop) > STRIDE:
        if _pairs_fit(tuple(crop), extents):
            whole = all(length * 2 // 3 < most + STRIDE for length in smallest)
            why = "two thirds of the smallest sample" if whole else f"at most {most} voxels per axis on this machine"
            return ReasonedValue(tuple(crop), f"{why}; multiples of {STRIDE}, the U-Net's stride")
        crop[crop.index(max(crop))] -= STRIDE
    return None


def without_outliers(fingerprint: Fingerprint, most: int) -> Fingerprint:
    """Leave out the few samples so small that they would force small crops on all others.

    Few means one in twenty along an axis, and one in ten in total; small crops are at most half as large in voxels,
    or there is no crop.
    """
    size = tuple(int(length) for length in np.percentile(fingerprint.extents, 100 * SMALL_SHARE, axis=0))
    kept = fingerprint.at_least(size)
    if kept.num_small == 0 or kept.num_small > 2 * SMALL_SHARE * fingerprint.num_samples:
        return fingerprint
    wanted, crop = crop_of(kept, most), crop_of(fingerprint, most)
    if wanted is None or (crop is not None and prod(crop.value) * 2 > prod(wanted.value)):
        return fingerprint
    return kept


def pretrainings(fingerprint: Fingerprint, size: Size) -> tuple[Pretraining, Pretraining]:
    """Choose two methods that take every sample: methods of crops, or of puzzle patches where samples are small."""
    crop = crop_of(fingerprint, size.crop)
    if crop is None:
        return _puzzles(fingerprint)
    dims = fingerprint.spatial_dims
    block = 16 if min(crop.value) >= 64 else 8
    return (
        Pretraining(
            "SimSiam, IoU [0.3, 0.6]",
            {
                "name": "simsiam",
                "crops": {"size": list(crop.value), "iou": list(IOU)},
                "projector_dim": 256,
                "predictor_dim": 64,
            },
            {"name": "sgd", "lr": 0.1, "final_lr": 1e-6, "weight_decay": 1e-5},
            f"two crops of a sample that overlap by 30 to 60 %; {crop.reason}",
        ),
        Pretraining(
            "SimMIM",
            {
                "name": "simmim",
                "variant": "paper" if dims == 2 else "volumes",
                "crop_size": list(crop.value),
                "block": block,
            },
            {"name": "adamw", "lr": 0.001, "final_lr": 1e-6, "weight_decay": 0.05},
            "hidden blocks of the same crops",
        ),
    )


def _puzzles(fingerprint: Fingerprint) -> tuple[Pretraining, Pretraining]:
    smallest = fingerprint.smallest
    grid = [3 if length >= 3 * LEAST_CELL else 1 for length in smallest]
    if max(grid) == 1:
        raise ValueError(
            f"shards {fingerprint.uri}: the smallest sample has {by(smallest)} voxels, expected at least "
            f"{3 * LEAST_CELL} along one axis; ingest with a recipe that pads or resamples to more voxels, such as "
            f"--set pad_to='{[32] * fingerprint.spatial_dims}'"
        )
    patches = {"grid": grid, "size": 32 if fingerprint.spatial_dims == 2 else 16, "jitter": 0, "gap": 0}
    optimiser = {"name": "adam", "lr": 0.001, "final_lr": 1e-6}
    of_patches = {"patches": patches, "hidden_dims": [256]}
    orders = min(100, factorial(prod(grid)))
    reason = f"samples of {by(smallest)} are too small for crops: a grid of patches, each resized to one size"
    return (
        Pretraining("patch location", {"name": "patch_location", **of_patches}, optimiser, reason),
        Pretraining(
            "jigsaw",
            {"name": "jigsaw", **of_patches, "num_permutations": orders},
            optimiser,
            "the same patches, to be put in order",
        ),
    )


def batch_of(per_worker: int, num_samples: int, fits: int, machine: Machine) -> ReasonedValue:
    """Choose a batch: for each worker, the largest power of two that memory holds, at most ``per_worker``.

    It is no larger than half of the samples, so that a batch does not hold all of them, but each worker has at least
    two samples, because batch normalisation cannot take a single one.
    """
    workers = max(1, machine.gpus)
    wanted = min(per_worker, fits, max(2, num_samples // (2 * workers)))
    share = max(2, 2 ** int(np.log2(max(wanted, 1))))
    where = "the GPU" if machine.gpus == 1 else f"{machine.gpus} GPUs" if machine.gpus else "the CPU"
    held = f"memory holds about {fits:,} samples" + (" on each" if machine.gpus > 1 else "")
    return ReasonedValue(
        share * workers, f"{share} for each of {where}; {held}" if machine.gpus > 1 else f"{held} on {where}"
    )


def task_crop_of(labels: LabelFacts, most: int) -> ReasonedValue:
    """Choose the crop of a segmentation: the median sample's size; smaller samples are padded."""
    median = labels.median
    crop = [min(most, max(STRIDE, ceil(length / STRIDE) * STRIDE)) for length in median]
    if max(crop) == STRIDE:
        crop[-1] = 2 * STRIDE
    return ReasonedValue(
        tuple(crop), f"the median sample is {by(median)}; at most {most} voxels per axis on this machine"
    )


def task_size_of(labels: LabelFacts, most: int) -> ReasonedValue:
    """Choose the size to which whole samples are resized for a classification."""
    longest = max(labels.median)
    size = min(most, max(2 * STRIDE, ceil(longest / STRIDE) * STRIDE))
    return ReasonedValue(size, f"whole samples are resized to this; the median sample is {by(labels.median)}")


def epochs_between_validations(steps: int, batch: int, num_train: int, times: int) -> float:
    """Return the interval in epochs that gives this many validations of a fine-tuning."""
    return max(1, ceil(steps * batch / num_train / times))


def _pairs_fit(crop: tuple[int, ...], extents: list[tuple[int, ...]]) -> bool:
    pairs = BoxPairs(crop, IOU)
    try:
        for extent in extents:
            pairs.check(extent)
    except ValueError:
        return False
    return True
