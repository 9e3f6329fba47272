"""Sampled crops: crops of any size and shape, resized to one size by a single resampling of the whole batch."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from data.views.batch import Batch


def sample_crops(batch: Batch, boxes: Int[np.ndarray, "v b 2 n"], size: tuple[int, ...]) -> Float[Tensor, "v b c *s"]:
    """Cut v boxes out of each sample, as float32 intensities on the batch's device, resized to one size.

    They are resized (bi/tri)linearly with the centres of voxels in place, as ``F.interpolate`` does without
    ``align_corners``; nothing is smoothed before it is made smaller. A view sees nothing beyond its box.
    """
    voxels = batch.voxels.to(torch.float32)
    # The v crops of a sample lie one behind the other along the first axis.
    grid = _grid(boxes, size, batch.voxels.shape[2:], voxels.device).flatten(1, 2)
    crops = F.grid_sample(voxels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return batch.intensities(crops.unflatten(2, (len(boxes), size[0])).movedim(2, 0).contiguous())


def _grid(
    boxes: Int[np.ndarray, "v b 2 n"], size: tuple[int, ...], extent: tuple[int, ...], device: torch.device
) -> Float[Tensor, "b v *s n"]:
    """Return where each voxel of each crop comes from, in grid_sample's coordinates (last axis first)."""
    n = len(size)
    grid = torch.empty((boxes.shape[1], boxes.shape[0], *size, n), device=device)
    for axis, (length, whole) in enumerate(zip(size, extent, strict=True)):
        low, high = boxes[:, :, :1, axis], boxes[:, :, 1:, axis]
        source = low + (np.arange(length) + 0.5) * (high - low) / length - 0.5
        along = (2 * source.clip(low, high - 1) + 1) / whole - 1
        placed = torch.from_numpy(along.swapaxes(0, 1)).to(device, torch.float32)
        grid[..., n - 1 - axis] = placed.view(*placed.shape[:2], *(length if k == axis else 1 for k in range(n)))
    return grid
