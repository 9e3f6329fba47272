"""Constant voxel: the one value, the same for all voxels of a batch over all ranks, that restores images best."""

import torch
from jaxtyping import Float
from torch import Tensor

from methods.parts.precision import full_precision
from methods.parts.ranks import largest_over_ranks, total_over_ranks

ROUNDS = 24  # of bisection: to 2**-24 of the range of intensities


@full_precision()
def mean_voxel(images: Float[Tensor, "b c *s"]) -> Float[Tensor, ""]:
    """Return the mean intensity: no other constant has a smaller squared error."""
    total = total_over_ranks(torch.stack([images.sum(), images.new_tensor(float(images.numel()))]))
    return total[0] / total[1]


@full_precision()
def median_voxel(images: Float[Tensor, "b c *s"]) -> Float[Tensor, ""]:
    """Return the median intensity, found by bisection: no other constant has a smaller absolute error."""
    images = images.detach()
    high = largest_over_ranks(images.max())
    low = -largest_over_ranks(-images.min())
    half = total_over_ranks(images.new_tensor(images.numel() / 2))
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        above = total_over_ranks((images <= middle).sum().to(images)) < half
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high
