"""Views: crops of a batch, and their augmentation on the batch's own device, in 2D and 3D.

Drawing the parameters (on the host, from ``SampleRng``) and applying them (in torch) are two functions. A sample's
augmentation depends only on its own random stream, so splitting a batch changes nothing; and only the samples for
which an augmentation was drawn pay for it.

The order is that of the IoU-positives thesis (seed 001, section 4.5): zoom, flips, quarter-turns, intensity scale,
intensity shift, Gaussian smoothing, Gaussian noise. The first three are one resampling. Intensities are not clipped.
Then come ``transforms``, in their order, and one of ``one_of`` (``transforms/``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor
from torch.nn import functional as F

from data.additions import ADDED
from data.boxes import Boxes
from data.views.batch import Batch
from data.views.intervals import Deviations, Factors, Interval, Probability
from data.views.rng import SampleRng
from data.views.smoothing import smooth
from data.views.transforms import AnyTransform
from data.views.transforms.base import MovingTransform
from data.views.transforms.series import (
    Series,
    choose,
    draw_each,
    draw_one_of,
    transform,
    transform_boxes,
    transform_labels,
)


class Augmentation(BaseModel):
    """The possible augmentations of a view, each with its probability; by default there are none.

    zoom           factor, the same along all axes; the view keeps its size, padded with 0 beyond the crop
    flip_axes      axes that are mirrored, each with flip_prob; D means nothing to an image
    rotate_prob    probability of 1, 2 or 3 quarter-turns of the H-W plane; a half-turn where H and W differ
    scale          a in x * (1 + a)
    shift          b in x + b
    smooth_sigma   standard deviation in voxels, drawn for each axis
    noise_sigma    standard deviation in units of intensity
    transforms     further changes, each with its own ``prob``
    one_of         changes of which each view gets exactly one, and the views of a sample different ones
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    zoom: Factors = (0.8, 1.2)
    zoom_prob: Probability = 0.0
    flip_axes: tuple[Literal["D", "H", "W"], ...] = ("H", "W")
    flip_prob: Probability = 0.0
    rotate_prob: Probability = 0.0
    scale: Interval = (-0.1, 0.1)
    scale_prob: Probability = 0.0
    shift: Interval = (-0.1, 0.1)
    shift_prob: Probability = 0.0
    smooth_sigma: Deviations = (0.25, 1.5)
    smooth_prob: Probability = 0.0
    noise_sigma: Deviations = (0.01, 0.01)
    noise_prob: Probability = 0.0
    transforms: Annotated[tuple[AnyTransform, ...], ADDED] = ()
    one_of: Annotated[tuple[AnyTransform, ...], ADDED] = ()

    @field_validator("one_of")
    @classmethod
    def _without_probabilities(cls, one_of: tuple[AnyTransform, ...]) -> tuple[AnyTransform, ...]:
        for each in one_of:
            if each.prob != 1:
                raise ValueError(
                    f"prob {each.prob:g} of {each.name} in one_of: exactly one of them happens, all equally often; "
                    "remove prob, or move it to transforms"
                )
        return one_of


@dataclass(frozen=True)
class ViewParams:
    """The parameters of B views with n axes, on the host; neutral where an augmentation does not happen."""

    zoom: Float[np.ndarray, " b"]
    flip: Bool[np.ndarray, "b n"]
    quarter_turns: Int[np.ndarray, " b"]
    scale: Float[np.ndarray, " b"]
    shift: Float[np.ndarray, " b"]
    smooth_sigma: Float[np.ndarray, "b n"]
    noise_sigma: Float[np.ndarray, " b"]
    noise: SampleRng
    series: Series = ()


def choose_one_of(config: Augmentation, num_views: int, rng: SampleRng) -> Int[np.ndarray, "v b"]:
    """Draw which of ``one_of`` each view of a sample goes through, from the sample's stream, for ``draw``."""
    if not config.one_of:
        return np.zeros((num_views, len(rng)), dtype=np.int64)
    return choose(len(config.one_of), num_views, rng.fold("one of"))


def draw(
    config: Augmentation, size: tuple[int, ...], rng: SampleRng, chosen: Int[np.ndarray, " b"] | None = None
) -> ViewParams:
    """Draw the parameters for one view of each sample, of the given spatial size.

    ``chosen`` is the view's row of ``choose_one_of``. A sample's only view needs none.
    """

    def value(name: str, interval: tuple[float, float], prob: float, neutral: float, *shape: int) -> np.ndarray:
        stream = rng.fold(name)
        drawn = stream.fold("value").uniform(*shape, low=interval[0], high=interval[1])
        happens = stream.fold("happens").chance(prob)
        return np.where(happens.reshape(-1, *[1] * len(shape)), drawn, neutral)

    n = len(size)
    each = draw_each(config.transforms, size, rng.fold("transforms"))
    one = draw_one_of(
        config.one_of, choose_one_of(config, 1, rng)[0] if chosen is None else chosen, size, rng.fold("one")
    )
    flips = [rng.fold(f"flip {axis}").chance(config.flip_prob * (axis in config.flip_axes)) for axis in "DHW"[-n:]]
    turns = rng.fold("quarter turns").integers(3) + 1 if size[-2] == size[-1] else np.full(len(rng), 2)
    return ViewParams(
        zoom=value("zoom", config.zoom, config.zoom_prob, 1.0),
        flip=np.stack(flips, axis=1),
        quarter_turns=turns * rng.fold("rotate").chance(config.rotate_prob),
        scale=value("scale", config.scale, config.scale_prob, 0.0),
        shift=value("shift", config.shift, config.shift_prob, 0.0),
        smooth_sigma=value("smooth", config.smooth_sigma, config.smooth_prob, 0.0, n),
        noise_sigma=value("noise", config.noise_sigma, config.noise_prob, 0.0),
        noise=rng.fold("noise voxels"),
        series=(*each, *one),
    )


def cut(batch: Batch, boxes: Int[np.ndarray, "b 2 n"]) -> Float[Tensor, "b c *s"]:
    """Cut one box of equal size out of each sample, as float32 intensities on the batch's device."""
    size = (boxes[0, 1] - boxes[0, 0]).tolist()
    crops = torch.empty((*batch.voxels.shape[:2], *size), device=batch.voxels.device)
    for crop, voxels, (low, high) in zip(crops, batch.voxels, boxes.tolist(), strict=True):
        crop.copy_(voxels[(..., *(slice(a, b) for a, b in zip(low, high, strict=True)))])
    return batch.intensities(crops)


def cut_boxes(findings: Sequence[Boxes], boxes: Int[np.ndarray, "b 2 n"]) -> tuple[Boxes, ...]:
    """Return what each sample's crop shows of the boxes of its findings, in voxels of the crop, as ``cut`` cuts it.

    ``boxes`` may exceed the sample: then the crop is padded there.
    """
    return tuple(own.cropped(low, high) for own, (low, high) in zip(findings, boxes, strict=True))


def augment(images: Float[Tensor, "b c *s"], drawn: ViewParams) -> Float[Tensor, "b c *s"]:
    """Apply what was drawn, in the module's order; ``images`` is left as it is."""
    per_sample = (-1, *[1] * (images.ndim - 1))
    factor = torch.from_numpy(1 + drawn.scale).to(images).view(per_sample)
    offset = torch.from_numpy(drawn.shift).to(images).view(per_sample)
    images = move(images, drawn) * factor + offset
    return transform(add_noise(smooth(images, drawn.smooth_sigma), drawn.noise_sigma, drawn.noise), drawn.series)


def move(images: Float[Tensor, "b c *s"], drawn: ViewParams, nearest: bool = False) -> Float[Tensor, "b c *s"]:
    """Zoom, flip and turn by one resampling, (bi/tri)linear or nearest.

    Voxels land where MONAI's Zoom(keep_size=True, padding_mode="constant"), Flip and Rotate90 put them.
    """
    moved = np.flatnonzero((drawn.zoom != 1) | drawn.flip.any(axis=1) | (drawn.quarter_turns != 0))
    if len(moved) == 0:
        return images
    grid = _sampling_grid(images, drawn, moved)
    index = torch.from_numpy(moved).to(images.device)
    mode = "nearest" if nearest else "bilinear"
    sampled = F.grid_sample(images[index], grid, mode=mode, padding_mode="zeros", align_corners=False)
    return images.index_copy(0, index, sampled)


def move_labels(labels: Int[Tensor, "b *s"], drawn: ViewParams) -> Int[Tensor, "b *s"]:
    """Move label maps as ``augment`` moves images, preserving their values (below 2**24)."""
    moved = move(labels[:, None].float(), drawn, nearest=True)[:, 0].to(labels.dtype)
    return transform_labels(moved, drawn.series)


def move_boxes(
    findings: Sequence[Boxes],
    drawn: ViewParams,
    size: tuple[int, ...],
    seen: Float[np.ndarray, "b m m"] | None = None,
) -> tuple[Boxes, ...]:
    """Move the boxes of each view's findings as ``augment`` moves views of this size.

    ``seen`` takes the voxel indices (.., 1) of the boxes to those of the views, where they are others.
    """
    to_moved = _to_moved(drawn, size) @ (np.eye(len(size) + 1) if seen is None else seen)
    moved = tuple(own.moved(matrix, size) for own, matrix in zip(findings, to_moved, strict=True))
    return transform_boxes(moved, drawn.series, size)


def _to_moved(drawn: ViewParams, size: tuple[int, ...]) -> Float[np.ndarray, "b m m"]:
    """Return the matrices that take voxel indices of views to those after their zoom, flips and turns."""
    n = len(size)
    to_moved = np.tile(np.eye(n + 1), (len(drawn.zoom), 1, 1))
    for axis, length in enumerate(size):
        resized, start = _zoomed(length, drawn.zoom)
        factor, sign = resized / length, np.where(drawn.flip[:, axis], -1, 1)
        to_moved[:, axis, axis] = sign * factor
        to_moved[:, axis, n] = sign * ((factor - 1) / 2 - start) + drawn.flip[:, axis] * (length - 1)
    for turn in range(int(drawn.quarter_turns.max(initial=0))):
        # A quarter-turn takes (h, w) to (W - 1 - w, h).
        turned = drawn.quarter_turns > turn
        h, w = to_moved[turned, n - 2], to_moved[turned, n - 1]
        w[:, n] -= size[n - 1 - turn % 2] - 1
        to_moved[turned, n - 2], to_moved[turned, n - 1] = -w, h
    return to_moved


def whole_move(drawn: ViewParams, size: tuple[int, ...]) -> Float[np.ndarray, "b m m"]:
    """Return the matrices that take voxel indices (.., 1) of views to those that ``augment`` gives them."""
    matrices = _to_moved(drawn, size)
    for each in drawn.series:
        if isinstance(each.transform, MovingTransform):
            own = each.transform.to_moved(each.numbers, size)
            matrices = np.where(each.happens[:, None, None], own @ matrices, matrices)
    return matrices


def add_noise(
    images: Float[Tensor, "b c *s"], sigma: Float[np.ndarray, " b"], rng: SampleRng
) -> Float[Tensor, "b c *s"]:
    """Add Gaussian noise of each sample's own standard deviation; 0 leaves it as it is."""
    noisy = np.flatnonzero(sigma > 0)
    if len(noisy) == 0:
        return images
    noise = rng.take(noisy).normal_voxels(images.shape[1:], images.device)
    noise *= torch.from_numpy(sigma[noisy]).to(noise).view(-1, *[1] * (images.ndim - 1))
    return images.index_add(0, torch.from_numpy(noisy).to(images.device), noise.to(images))


def _sampling_grid(images: Float[Tensor, "b c *s"], drawn: ViewParams, moved: np.ndarray) -> Float[Tensor, "m *s n"]:
    """Return where each voxel of the moved samples comes from, in grid_sample's coordinates (last axis first).

    Along an axis, all voxels of one index come from one coordinate: only these coordinates are computed on the host
    and copied; arrays as large as the views are filled on their device.
    """
    size, turns = images.shape[2:], drawn.quarter_turns[moved]
    n = len(size)
    # Undoing k quarter-turns takes H from (H, W, -H, -W) and W from (W, -H, -W, H) for k = 0 .. 3.
    turned = {n - 2: turns >= 2, n - 1: (turns == 1) | (turns == 2)}
    odd = turns % 2 == 1
    swapped = torch.from_numpy(odd).to(images.device).view(-1, *[1] * n)
    grid = images.new_empty((len(moved), *size, n))
    for axis, length in enumerate(size):
        position = np.broadcast_to(np.arange(length), (len(moved), length))
        mirrored = drawn.flip[moved, axis] ^ turned.get(axis, False)
        position = np.where(mirrored[:, None], length - 1 - position, position)
        source = torch.from_numpy((2 * _unzoom(position, length, drawn.zoom[moved]) + 1) / length - 1)
        along = source.float().to(images).view(-1, *(length if k == axis else 1 for k in range(n)))
        if axis >= n - 2 and odd.any():
            along = torch.where(swapped, along.transpose(-1, -2), along)
        grid[..., n - 1 - axis] = along
    return grid


def _unzoom(position: np.ndarray, length: int, zoom: np.ndarray) -> Float[np.ndarray, "b s"]:
    """Return the position before a zoom that keeps ``length``: resized to whole voxels, then padded or cut evenly."""
    resized, start = _zoomed(length, zoom)
    zoomed = position + start[:, None]
    source = (zoomed + 0.5) * (length / resized)[:, None] - 0.5
    # Resizing repeats the border voxel; only voxels beyond the resized crop are 0.
    inside = (zoomed >= 0) & (zoomed < resized[:, None])
    return np.where(inside, source.clip(0, length - 1), source)


def _zoomed(length: int, zoom: np.ndarray) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Return the length after a zoom, and where the part that is kept begins in it (below 0: padded)."""
    resized = np.floor(length * zoom).astype(np.int64)
    return resized, np.where(resized < length, -((length - resized) // 2), resized // 2 - length // 2)
