"""Distortions: what Models Genesis does to crops before they are restored, batched and on their device.

Paper:     Zhou et al., "Models Genesis", Medical Image Analysis 2021, section 3: non-linear intensities, local
           shuffling, in-painting and out-painting.
Reference: MrGiovanni/ModelsGenesis @ 32b7b5e, ``pytorch/utils.py``. There are no loops over windows here: each voxel
           takes its value through the last window that covers it, which gives the same distribution.
Shapes:    B samples, C channels, K windows, n spatial axes, *s their lengths, V voxels, O offsets in a window.

Intensities are expected in [0, 1], to which recipes bring them; curves cut off what lies beyond.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from pydantic import Field
from torch import Tensor

from data.views.intervals import Probability
from data.views.rng import SampleRng, scale_words
from methods.base import FrozenConfig
from methods.parts.box_maps import covered, draw_boxes, first_successes

POINTS = 1000  # at which a curve is known; between them it is straight
WINDOWS = 10  # a window is at most this part of a crop along each axis
MORE = 0.95  # probability of a further box
MOST = 5  # boxes
WAYS = ("shuffle", "bend", "paint inside", "paint outside")
MARGIN = 3  # voxels between a box and the crop's border


class DistortionConfig(FrozenConfig):
    """How often each distortion happens.

    curve_prob     probability that intensities are bent by a curve, rising or falling
    shuffle_prob   probability that voxels change places inside small windows
    paint_prob     probability that a part is painted over
    outer_prob     probability that this part is all but some boxes, and not the boxes
    num_windows    how many windows are shuffled
    """

    curve_prob: Probability = 0.9
    shuffle_prob: Probability = 0.5
    paint_prob: Probability = 0.9
    outer_prob: Probability = 0.8
    num_windows: int = Field(default=10_000, ge=1)


def distorted(whole: Float[Tensor, "b c *s"], config: DistortionConfig, rng: SampleRng) -> Float[Tensor, "b c *s"]:
    """Distort each sample in the ways that are drawn for it."""
    images = whole
    painted, outside = (
        rng.fold("painted").chance(config.paint_prob),
        rng.fold("outside").chance(config.outer_prob),
    )
    for name, rows in (
        ("shuffle", rng.fold("shuffled").chance(config.shuffle_prob)),
        ("bend", rng.fold("bent").chance(config.curve_prob)),
        ("paint inside", painted & ~outside),
        ("paint outside", painted & outside),
    ):
        images = change_some(images, rows, partial(distorted_by, name, config.num_windows), rng.fold(name))
    return images


def distorted_by(
    name: str, num_windows: int, images: Float[Tensor, "b c *s"], rng: SampleRng
) -> Float[Tensor, "b c *s"]:
    """Distort all samples in one way of ``WAYS``."""
    match name:
        case "shuffle":
            low, lengths = draw_windows(tuple(images.shape[2:]), num_windows, rng.fold("windows"))
            return shuffle(images, low, lengths, rng.fold("order"))
        case "bend":
            return bend(images, draw_curves(rng))
        case "paint inside":
            return paint_inside(images, rng)
        case _:
            return paint_outside(images, rng)


def change_some(
    images: Float[Tensor, "b c *s"],
    chosen: Bool[np.ndarray, " b"],
    change: Callable[[Tensor, SampleRng], Tensor],
    rng: SampleRng,
) -> Float[Tensor, "b c *s"]:
    """Change the chosen samples, each by its own stream; ``images`` is left as it is."""
    if not chosen.any():
        return images
    index = torch.from_numpy(np.flatnonzero(chosen)).to(images.device)
    return images.index_copy(0, index, change(images[index], rng.take(chosen)))


def draw_curves(rng: SampleRng, fall_prob: float = 0.5) -> Float[np.ndarray, "b 2 4"]:
    """Draw the control points of a monotone Bezier curve, from 1 to 0 with ``fall_prob``, and else from 0 to 1."""
    points = np.tile([0.0, 0.0, 0.0, 1.0], (len(rng), 2, 1))
    points[:, :, 1:3] = rng.fold("points").uniform(2, 2)
    falls = rng.fold("falls").chance(fall_prob)
    points[falls, 1] = points[falls, 1, ::-1]
    return points


def bend(images: Float[Tensor, "b c *s"], points: Float[np.ndarray, "b 2 4"]) -> Float[Tensor, "b c *s"]:
    """Map each sample's intensities by its curve."""
    t = np.linspace(0, 1, POINTS)
    basis = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    x, y = torch.from_numpy(points @ basis).to(images).movedim(1, 0).contiguous()
    values = images.flatten(1).clamp(0, 1)
    right = torch.searchsorted(x, values).clamp(1, POINTS - 1)
    x0, x1, y0, y1 = (along.gather(1, index) for along in (x, y) for index in (right - 1, right))
    share = (values - x0) / (x1 - x0).clamp(min=torch.finfo(x.dtype).tiny)
    return (y0 + share * (y1 - y0)).view_as(images)


def longest_window(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the largest lengths of a window."""
    return tuple(max(1, length // WINDOWS) for length in size)


def draw_windows(
    size: tuple[int, ...], num: int, rng: SampleRng
) -> tuple[Int[np.ndarray, "b k n"], Int[np.ndarray, "b k n"]]:
    """Draw the low corners and the lengths of small windows."""
    lengths = 1 + scale_words(rng.fold("lengths").words(num, len(size)), np.array(longest_window(size)))
    low = scale_words(rng.fold("places").words(num, len(size)), np.array(size) - lengths + 1)
    return low, lengths


def shuffle(
    images: Float[Tensor, "b c *s"],
    low: Int[np.ndarray, "b k n"],
    lengths: Int[np.ndarray, "b k n"],
    rng: SampleRng,
) -> Float[Tensor, "b c *s"]:
    """Shuffle the voxels of each window; where windows overlap, the last one shows voxels of the unshuffled image."""
    size, device = tuple(images.shape[2:]), images.device
    offsets = np.indices(longest_window(size)).reshape(len(size), -1).T
    keys = rng.normal_voxels((low.shape[1], len(offsets)), device)
    corners, sides, inside = (torch.from_numpy(part).to(device) for part in (low, lengths, offsets))
    sources = [shuffled_sources(size, corners[i], sides[i], inside, keys[i]) for i in range(len(images))]
    index = torch.stack(sources)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view_as(images)


def shuffled_sources(
    size: tuple[int, ...],
    low: Int[Tensor, "k n"],
    lengths: Int[Tensor, "k n"],
    offsets: Int[Tensor, "o n"],
    keys: Float[Tensor, "k o"],
) -> Int64[Tensor, " v"]:
    """Return which voxel each voxel of a sample shows; a window's voxels are put in the order of their keys."""
    steps = torch.tensor([int(np.prod(size[axis + 1 :])) for axis in range(len(size))], device=low.device)
    places = ((low[:, None] + offsets) * steps).sum(2)
    beyond = (offsets >= lengths[:, None]).any(2)
    shown = places.gather(1, keys.masked_fill(beyond, torch.inf).argsort(1))
    # The window's own voxels come first, in their order, as many as there are finite keys.
    target = places.gather(1, torch.argsort(beyond.to(torch.uint8), dim=1, stable=True))
    inside = torch.arange(len(offsets), device=low.device) < lengths.prod(1, keepdim=True)
    window = torch.arange(len(low), device=low.device)[:, None].expand_as(target)[inside]
    target, shown = target[inside], shown[inside]
    last = torch.full((int(np.prod(size)),), -1, device=low.device).scatter_reduce_(0, target, window, "amax")
    shows = last[target] == window
    sources = torch.arange(len(last), device=low.device)
    return sources.scatter(0, target[shows], shown[shows])


def paint_inside(
    images: Float[Tensor, "b c *s"], rng: SampleRng, most: int = MOST, parts: tuple[int, int] = (6, 3)
) -> Float[Tensor, "b c *s"]:
    """Replace up to ``most`` boxes by noise, each by default a sixth to a third of the crop long."""
    size = tuple(images.shape[2:])
    shortest, longest = (tuple(max(1, length // part) for length in size) for part in parts)
    boxes = draw_boxes(size, shortest, longest, most, MARGIN, rng.fold("boxes"))
    counts = first_successes(most, MORE, rng.fold("count"))
    return torch.where(covered(size, boxes, counts, images.device), uniform_noise(images, rng.fold("noise")), images)


def paint_outside(images: Float[Tensor, "b c *s"], rng: SampleRng) -> Float[Tensor, "b c *s"]:
    """Replace by noise all but one to five boxes, each three to four sevenths of the crop long."""
    size = tuple(images.shape[2:])
    shortest, longest = (tuple(max(1, length - share * length // 7) for length in size) for share in (4, 3))
    boxes = draw_boxes(size, shortest, longest, MOST, MARGIN, rng.fold("boxes"))
    counts = 1 + first_successes(MOST - 1, MORE, rng.fold("count"))
    return torch.where(covered(size, boxes, counts, images.device), images, uniform_noise(images, rng.fold("noise")))


def uniform_noise(images: Float[Tensor, "b c *s"], rng: SampleRng) -> Float[Tensor, "b c *s"]:
    """Draw noise, uniform in [0, 1], for each voxel and channel."""
    return torch.special.ndtr(rng.normal_voxels(images.shape[1:], images.device)).to(images)
