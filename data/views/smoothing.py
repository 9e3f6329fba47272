"""Smoothing: a Gaussian filter with a width of each sample's own."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SMOOTHING_TAIL = 4.0  # standard deviations, as in MONAI's GaussianFilter


def smooth(images: Float[Tensor, "b c *s"], sigma: Float[np.ndarray, "b n"]) -> Float[Tensor, "b c *s"]:
    """Convolve each sample with a Gaussian of its own sigma (voxels) per axis; 0 leaves it as it is; outside is 0.

    The kernel is the Gaussian integrated over each voxel, cut at four sigma, as in MONAI's GaussianSmooth.
    """
    smoothed = np.flatnonzero((sigma > 0).all(axis=1))
    if len(smoothed) == 0:
        return images
    index = torch.from_numpy(smoothed).to(images.device)
    some = images[index]
    groups = some.shape[0] * some.shape[1]
    flat = some.reshape(1, groups, *some.shape[2:])
    convolve = (F.conv1d, F.conv2d, F.conv3d)[flat.ndim - 3]
    for axis in range(sigma.shape[1]):
        kernel = torch.from_numpy(_gaussian_kernels(sigma[smoothed, axis])).to(images)
        shape = [1] * sigma.shape[1]
        shape[axis] = kernel.shape[1]
        weight = kernel.repeat_interleave(some.shape[1], dim=0).view(groups, 1, *shape)
        flat = convolve(flat, weight, padding=tuple(k // 2 for k in shape), groups=groups)
    return images.index_copy(0, index, flat.view_as(some))


def _gaussian_kernels(sigma: Float[np.ndarray, " b"]) -> Float[np.ndarray, "b k"]:
    """Return one kernel per sigma, zero beyond its own tail, all as long as the longest."""
    tails = np.maximum(sigma * SMOOTHING_TAIL, 0.5) + 0.5
    reach = int(tails.max())
    edges = torch.from_numpy((np.arange(-reach, reach + 2) - 0.5) / (np.sqrt(2) * sigma[:, None]))
    kernel = 0.5 * np.diff(torch.erf(edges).numpy(), axis=1)
    return np.where(np.abs(np.arange(-reach, reach + 1)) <= np.floor(tails)[:, None], kernel, 0.0)
