"""Blur: convolve views with a Gaussian.

Reference: torchio 0.18.92, RandomBlur: a standard deviation in [0, 2] mm for each axis (voxels
           here, as JSSL's voxels measure 1 mm), by scipy's gaussian_filter: the Gaussian at whole voxels up to
           floor(4 sigma + 1/2), divided by its sum; beyond its border the image is mirrored, the outermost voxel
           included.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.views.intervals import Deviations
from data.views.rng import SampleRng
from data.views.transforms.base import Transform

TAIL = 4.0  # standard deviations


class Blur(Transform):
    """Blurs along each axis.

    sigma       standard deviation in voxels
    isotropic   the same one along all axes
    numbers     the standard deviation along each axis
    """

    name: Literal["blur"] = "blur"
    sigma: Deviations = (0.0, 2.0)
    isotropic: bool = False

    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b n"]:
        """Draw the standard deviations."""
        low, high = self.sigma
        drawn = rng.uniform(1 if self.isotropic else len(size), low=low, high=high)
        return np.broadcast_to(drawn, (len(rng), len(size)))

    def apply(
        self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b n"], rng: SampleRng
    ) -> Float[Tensor, "b c *s"]:
        """Blur axis by axis: along an axis, the convolution of a mirrored image is a matrix of its own per sample."""
        for axis, length in enumerate(images.shape[2:]):
            matrices = _matrices(length, numbers[:, axis], images)
            columns = images.movedim(2 + axis, 1).flatten(2)
            blurred = torch.bmm(matrices, columns).view(images.movedim(2 + axis, 1).shape)
            images = blurred.movedim(1, 2 + axis)
        return images.contiguous()


def _matrices(length: int, sigma: Float[np.ndarray, " b"], images: Tensor) -> Float[Tensor, "b l l"]:
    """Return, for each sample, the weights of all voxels of an axis (columns) in each voxel (rows).

    Beyond the border, voxel j appears again at 2 m l + j and at 2 m l - 1 - j for every integer m.
    """
    reach = np.floor(TAIL * sigma + 0.5)
    repeats = (int(reach.max()) + 2 * length) // (2 * length)
    voxel = torch.arange(length, device=images.device)
    # At a reach of 0 only the voxel itself counts: sigma may be anything but 0 there.
    width = torch.from_numpy(np.maximum(sigma, 1e-3)).to(images).view(-1, 1, 1)
    furthest = torch.from_numpy(reach).to(images).view(-1, 1, 1)
    weights = images.new_zeros((len(sigma), length, length))
    for shift in range(-2 * repeats * length, 2 * repeats * length + 1, 2 * length):
        for place in (shift + voxel, shift - 1 - voxel):
            distance = (place - voxel[:, None]).to(images)
            weights += torch.exp(-0.5 * (distance / width).square()) * (distance.abs() <= furthest)
    return weights / weights.sum(2, keepdim=True)
