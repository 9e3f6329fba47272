"""The sampling grid as it was built before it was built on the device: voxel by voxel, on the host."""

import numpy as np
import torch
from torch import Tensor

from data.views.augmentation import ViewParams, _unzoom


def sampling_grid(size: tuple[int, ...], drawn: ViewParams, moved: np.ndarray) -> Tensor:
    """Return where each voxel of the moved samples comes from, in grid_sample's coordinates (last axis first)."""
    n = len(size)
    turns = drawn.quarter_turns[moved]
    # Undoing k quarter-turns takes H from (H, W, -H, -W) and W from (W, -H, -W, H) for k = 0 .. 3.
    turned = {n - 2: turns >= 2, n - 1: (turns == 1) | (turns == 2)}
    swapped = torch.from_numpy(turns % 2 == 1).view(-1, *[1] * n)
    grid = torch.empty((len(moved), *size, n))
    for axis, length in enumerate(size):
        position = np.broadcast_to(np.arange(length), (len(moved), length))
        mirrored = drawn.flip[moved, axis] ^ turned.get(axis, False)
        position = np.where(mirrored[:, None], length - 1 - position, position)
        source = torch.from_numpy((2 * _unzoom(position, length, drawn.zoom[moved]) + 1) / length - 1)
        along = source.view(-1, *(length if k == axis else 1 for k in range(n)))
        if axis >= n - 2 and swapped.any():
            along = torch.where(swapped, along.transpose(-1, -2), along)
        grid[..., n - 1 - axis] = along
    return grid
