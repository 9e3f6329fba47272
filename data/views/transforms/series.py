"""Series: which transforms each view of a batch goes through, with which numbers, and going through them.

A transform is applied once, to the views that drew it together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.boxes import Boxes
from data.views.rng import SampleRng
from data.views.transforms.base import MovingTransform, Transform


@dataclass(frozen=True)
class Draw:
    """A transform, which of the B views it changes, its numbers for all of them, and the streams of its noise."""

    transform: Transform
    happens: Bool[np.ndarray, " b"]
    numbers: Float[np.ndarray, "b k"]
    noise: SampleRng


Series = tuple[Draw, ...]


def draw_each(transforms: Sequence[Transform], size: tuple[int, ...], rng: SampleRng) -> Series:
    """Draw a series in which each transform happens with its own probability."""
    streams = [rng.fold(place) for place in range(len(transforms))]
    happens = [stream.fold("happens").chance(each.prob) for each, stream in zip(transforms, streams, strict=True)]
    return _draw(transforms, happens, size, streams)


def draw_one_of(
    transforms: Sequence[Transform], chosen: Int[np.ndarray, " b"], size: tuple[int, ...], rng: SampleRng
) -> Series:
    """Draw a series in which each view goes through one transform, the one with its number ``chosen``."""
    streams = [rng.fold(place) for place in range(len(transforms))]
    return _draw(transforms, [chosen == place for place in range(len(transforms))], size, streams)


def choose(num_transforms: int, num_views: int, rng: SampleRng) -> Int[np.ndarray, "v b"]:
    """Draw which transform each view of a sample goes through, uniformly and without repeating one.

    Where there are more views than transforms, they begin again in the same order.
    """
    order = rng.uniform(num_transforms).argsort(axis=1)
    return order[:, np.arange(num_views) % num_transforms].T


def transform(images: Float[Tensor, "b c *s"], series: Series) -> Float[Tensor, "b c *s"]:
    """Apply a series in its order, computing at least in float32; ``images`` is left as it is."""
    if not any(each.happens.any() for each in series):
        return images
    dtype = torch.promote_types(images.dtype, torch.float32)
    changed = images.to(dtype, copy=True)
    for draw in series:
        rows, index = _rows(draw, images.device)
        if len(rows):
            done = draw.transform.apply(changed[index], draw.numbers[rows], draw.noise.take(rows))
            changed.index_copy_(0, index, done)
    return changed.to(images.dtype)


def transform_labels(labels: Int[Tensor, "b *s"], series: Series) -> Int[Tensor, "b *s"]:
    """Move label maps by the transforms that move voxels."""
    for draw in series:
        rows, index = _rows(draw, labels.device)
        if isinstance(draw.transform, MovingTransform) and len(rows):
            labels = labels.index_copy(0, index, draw.transform.move_labels(labels[index], draw.numbers[rows]))
    return labels


def transform_boxes(findings: Sequence[Boxes], series: Series, size: tuple[int, ...]) -> tuple[Boxes, ...]:
    """Move the boxes of each view's findings by the transforms that move voxels of views of this size."""
    moved = list(findings)
    for draw in series:
        if isinstance(draw.transform, MovingTransform):
            matrices = draw.transform.to_moved(draw.numbers, size)
            for row in np.flatnonzero(draw.happens).tolist():
                moved[row] = moved[row].moved(matrices[row], size)
    return tuple(moved)


def _draw(
    transforms: Sequence[Transform],
    happens: Sequence[Bool[np.ndarray, " b"]],
    size: tuple[int, ...],
    streams: Sequence[SampleRng],
) -> Series:
    return tuple(
        Draw(each, true, each.draw(size, stream.fold("numbers")), stream.fold("voxels"))
        for each, true, stream in zip(transforms, happens, streams, strict=True)
    )


def _rows(draw: Draw, device: torch.device) -> tuple[Int[np.ndarray, " r"], Int[Tensor, " r"]]:
    """Return the views that a transform changes, on the host and on a device."""
    rows = np.flatnonzero(draw.happens)
    return rows, torch.from_numpy(rows).to(device)
