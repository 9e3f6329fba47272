"""Flip: mirror views along axes.

Reference: torchio 0.18.92, RandomFlip: the first spatial axis, with probability 0.5.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.views.intervals import Probability
from data.views.rng import SampleRng
from data.views.transforms.base import MovingTransform, by_sample


class Flip(MovingTransform):
    """Mirrors each of ``axes`` with ``axis_prob``, so that with the defaults every second view stays as it is.

    axes      D means nothing to an image; None is torchio's first axis: D of a volume as JSSL feeds it, and W of an
              image, which torchio reads as (W, H)
    numbers   for each axis 1 where it is mirrored, else 0
    """

    name: Literal["flip"] = "flip"
    axes: tuple[Literal["D", "H", "W"], ...] | None = None
    axis_prob: Probability = 0.5

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b n"]:
        """Draw for each axis whether it is mirrored."""
        axes = self.axes if self.axes is not None else ("D" if len(size) == 3 else "W",)
        flips = [rng.fold(axis).chance(self.axis_prob * (axis in axes)) for axis in "DHW"[-len(size) :]]
        return np.stack(flips, axis=1).astype(np.float64)

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b n"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Mirror each image; values stay exactly as they are."""
        return _mirrored(images, numbers)

    def move_labels(self, labels: Int[Tensor, "b *s"], numbers: Float[np.ndarray, "b n"]) -> Int[Tensor, "b *s"]:
        """Mirror label maps."""
        return _mirrored(labels[:, None], numbers)[:, 0]

    def to_moved(self, numbers: Float[np.ndarray, "b n"], size: tuple[int, ...]) -> Float[np.ndarray, "b m m"]:
        """Return the matrices by which voxel i of a mirrored axis of length l goes to l - 1 - i."""
        n = len(size)
        matrices = np.tile(np.eye(n + 1), (len(numbers), 1, 1))
        for axis, length in enumerate(size):
            matrices[:, axis, axis] = 1 - 2 * numbers[:, axis]
            matrices[:, axis, n] = numbers[:, axis] * (length - 1)
        return matrices


def _mirrored(voxels: Tensor, numbers: Float[np.ndarray, "b n"]) -> Tensor:
    for axis in np.flatnonzero(numbers.any(axis=0)).tolist():
        voxels = torch.where(by_sample(numbers[:, axis], voxels) > 0, voxels.flip(2 + axis), voxels)
    return voxels
