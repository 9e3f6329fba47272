"""Anisotropy: views as if they had been acquired in thicker slices along one axis.

Reference: torchio 0.18.92, RandomAnisotropy and Resample, and ITK's ResampleImageFilter. An axis is thinned to
           every f-th voxel, f in [1.5, 5], and brought back to its length. The thinned voxel k is the voxel nearest
           to (f - 1) / 2 + k f, for ceil(length / f) voxels k, so that the outer faces agree at the near end; the way
           back is linear. At the far end the last k may lie beyond the image: there torchio takes 0 (ITK's default),
           towards which the last voxels fade.
           An axis of one voxel stays as it is; torchio sets the whole image to 0 where f is above 2.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import AfterValidator
from torch import Tensor

from data.views.intervals import Interval
from data.views.rng import SampleRng
from data.views.transforms.base import Transform


def _at_least_one(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] < 1:
        raise ValueError(f"downsampling {list(interval)}: expected factors of at least 1; raise the lower one")
    return interval


class Anisotropy(Transform):
    """Thins one axis and brings it back.

    axes           those of which one is drawn; D means nothing to an image
    downsampling   by which factor voxels become longer
    beyond         what the last thinned voxel is where it lies beyond the image: 0, or the image's last voxel
    numbers        the axis, -1 where there is none, and the factor
    """

    name: Literal["anisotropy"] = "anisotropy"
    axes: tuple[Literal["D", "H", "W"], ...] = ("D", "H", "W")
    downsampling: Annotated[Interval, AfterValidator(_at_least_one)] = (1.5, 5.0)
    beyond: Literal["zero", "edge"] = "zero"

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b 2"]:
        """Draw the axis and the factor."""
        names = "DHW"[-len(size) :]
        axes = np.array([names.index(axis) for axis in self.axes if axis in names] or [-1])
        low, high = self.downsampling
        axis, factor = axes[rng.fold("axis").integers(len(axes))], rng.fold("factor").uniform(low=low, high=high)
        return np.stack([axis, factor], axis=1)

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b 2"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Replace each voxel by the mean of two thinned voxels, weighted by nearness."""
        for axis, length in enumerate(images.shape[2:]):
            rows = np.flatnonzero(numbers[:, 0] == axis)
            if len(rows) and length > 1:
                index = torch.from_numpy(rows).to(images.device)
                images = images.index_copy(0, index, self._thinned(images[index], axis, numbers[rows, 1]))
        return images

    def _thinned(
        self, images: Float[Tensor, "r c *s"], axis: int, factors: Float[np.ndarray, " r"]
    ) -> Float[Tensor, "r c *s"]:
        shape = [len(images), 1, *(length if k == axis else 1 for k, length in enumerate(images.shape[2:]))]
        sources, weights = self._sources(images.shape[2 + axis], factors)
        thinned = torch.zeros_like(images)
        for source, weight in zip(sources, weights, strict=True):
            index = torch.from_numpy(source).to(images.device).view(shape).expand_as(images)
            thinned = thinned + images.gather(2 + axis, index) * torch.from_numpy(weight).to(images).view(shape)
        return thinned

    def _sources(self, length: int, factors: Float[np.ndarray, " r"]) -> tuple[np.ndarray, np.ndarray]:
        """Return the two voxels (2, r, length) between which each voxel lies, and their weights."""
        factor = factors[:, None]
        last = np.ceil(length / factor) - 1
        position = (np.arange(length) - (factor - 1) / 2) / factor
        near = np.clip(np.floor(position), 0, last)
        far = np.minimum(near + 1, last)
        share = np.clip(position - near, 0, 1)
        centres = (factor - 1) / 2 + np.stack([near, far]) * factor
        weights = np.stack([1 - share, share])
        if self.beyond == "zero":
            weights = weights * (centres < length - 0.5)
        return np.clip(np.floor(centres + 0.5), 0, length - 1).astype(np.int64), weights
