"""Organ-centred crops: draw boxes whose middle voxel carries a label with a given probability, and cut them out."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor

from data.views.boxes import boxes_at
from data.views.rng import SampleRng

Centre = Literal["voxel", "label"]


def draw_centred_boxes(
    classes: Int[Tensor, "b *s"],
    extents: Int[np.ndarray, "b n"],
    size: tuple[int, ...],
    organ_prob: float,
    centre: Centre,
    rng: SampleRng,
) -> Int[np.ndarray, "b 2 n"]:
    """Draw one box per sample around a labelled voxel with ``organ_prob``, around a background voxel otherwise.

    ``classes`` is 0 for background and for the batch's padding. The labelled voxel is uniform over all labelled
    voxels (``voxel``: large organs are drawn more often) or over the voxels of a label that is drawn first
    (``label``: all labels present are drawn equally often). A sample without labels gets a box around background, a
    sample without background a box around a label. A box that would leave the sample is moved inside, so near the
    border the drawn voxel is not its middle. Along an axis that is shorter than the box, the box begins at 0.
    """
    foreground, background = classes > 0, _inside(classes, extents) & (classes == 0)
    wanted = foreground if centre == "voxel" else _one_label(classes, rng.fold("label"))
    organ = torch.from_numpy(rng.fold("organ").chance(organ_prob)).to(classes.device)
    has_organ, has_background = foreground.flatten(1).any(1), background.flatten(1).any(1)
    organ = (organ & has_organ) | ~has_background
    mask = torch.where(organ.view(-1, *[1] * (classes.ndim - 1)), wanted, background)
    middle = _draw_voxel(mask, rng.fold("centre"))
    room = np.maximum(extents - np.array(size), 0)
    return boxes_at(np.clip(middle - np.array(size) // 2, 0, room), size)


def cut_padded(
    x: Num[Tensor, "b *s"], boxes: Int[np.ndarray, "b 2 n"], extents: Int[np.ndarray, "b n"]
) -> Num[Tensor, "b *t"]:
    """Cut one box per sample out of the last axes; voxels beyond the sample's far end are 0."""
    n = boxes.shape[-1]
    out = x.new_zeros((*x.shape[: x.ndim - n], *(boxes[0, 1] - boxes[0, 0]).tolist()))
    for target, sample, (low, high) in zip(out, x, np.minimum(boxes, extents[:, None]).tolist(), strict=True):
        there = (..., *(slice(0, b - a) for a, b in zip(low, high, strict=True)))
        target[there] = sample[(..., *(slice(a, b) for a, b in zip(low, high, strict=True)))]
    return out


def _inside(classes: Int[Tensor, "b *s"], extents: Int[np.ndarray, "b n"]) -> Bool[Tensor, "b *s"]:
    """Mark the voxels that are not padding."""
    inside = torch.ones_like(classes, dtype=torch.bool)
    ends = torch.from_numpy(extents).to(classes.device)
    for axis, length in enumerate(classes.shape[1:]):
        shape = [1] * classes.ndim
        shape[axis + 1] = length
        position = torch.arange(length, device=classes.device).view(shape)
        inside &= position < ends[:, axis].view(-1, *[1] * (classes.ndim - 1))
    return inside


def _one_label(classes: Int[Tensor, "b *s"], rng: SampleRng) -> Bool[Tensor, "b *s"]:
    """Mark the voxels of one label per sample, uniform over the labels that it holds."""
    flat = classes.flatten(1).long()
    present = torch.zeros(len(flat), int(flat.max()) + 1, dtype=torch.bool, device=classes.device)
    present.scatter_(1, flat, True)
    present[:, 0] = False
    label = _nth_true(present, rng)
    return classes == label.view(-1, *[1] * (classes.ndim - 1))


def _draw_voxel(mask: Bool[Tensor, "b *s"], rng: SampleRng) -> Int[np.ndarray, "b n"]:
    """Draw the index of one marked voxel per sample."""
    index = _nth_true(mask.flatten(1), rng).cpu().numpy()
    return np.stack(np.unravel_index(index, mask.shape[1:]), axis=1)


def _nth_true(mask: Bool[Tensor, "b k"], rng: SampleRng) -> Int[Tensor, " b"]:
    """Draw the position of one true entry per row, uniformly; 0 where a row has none."""
    rank = mask.cumsum(1, dtype=torch.int32)
    count = rank[:, -1]
    unit = torch.from_numpy(rng.uniform()).to(mask.device)
    nth = torch.minimum((unit * count).to(torch.int32) + 1, count)
    return torch.searchsorted(rank, nth[:, None]).squeeze(1)
