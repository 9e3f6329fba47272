"""Batches of 8-bit samples, as the feed hands them to a method."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from data.views.batch import Batch
from methods.base import Facts

FACTS = Facts(num_samples=16, steps=20, batch_size=4)


def facts_of(names: Mapping[int, str]) -> Facts:
    """Return facts of a training on samples whose label values, or classes, have these names."""
    return replace(FACTS, names=names)


def eight_bit_batch(
    voxels: torch.Tensor,
    extents: Sequence[tuple[int, ...]],
    sample_ids: tuple[str, ...],
    first: int = 0,
    epoch: int = 0,
) -> Batch:
    """Return voxels (b, c, *s) as a batch; ``first`` is the number of its first sample, each a volume of its own."""
    count = len(extents)
    return Batch(
        voxels=voxels,
        extents=np.array(extents),
        scale=torch.full((count,), 1 / 255),
        offset=torch.zeros(count),
        spacing_mm=np.ones((count, len(extents[0])), np.float32),
        sample_ids=sample_ids,
        volumes=sample_ids,
        numbers=np.arange(first, first + count),
        rows=np.arange(first, first + count),
        epochs=np.full(count, epoch),
    )


def random_batch(extents: Sequence[tuple[int, ...]], epoch: int = 0) -> Batch:
    """Return one-channel noise, the same at every call, padded with noise to the largest extent."""
    count, largest = len(extents), np.max(extents, axis=0).tolist()
    voxels = torch.randint(0, 256, (count, 1, *largest), generator=torch.Generator().manual_seed(1)).byte()
    return eight_bit_batch(voxels, extents, tuple(str(i) for i in range(count)), epoch * count, epoch)
