"""Positions: vectors that tell a transformer where each patch of an image lies.

Paper:     Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5, once for each axis.
Reference: facebookresearch/mae @ efb2a80, ``util/pos_embed.py``: as many sines and cosines for each axis, and a base
           of 10,000. Its order of axes is of no consequence; here it is (D, H, W).
Shapes:    *g patches along each axis, N of them in all, d dimensions.
"""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

BASE = 10_000.0


def sin_cos_positions(grid: tuple[int, ...], dim: int) -> Float[Tensor, "1 n d"]:
    """Return sines and cosines of each patch's place along each axis; what cannot be shared evenly is 0."""
    waves = dim // (2 * len(grid))
    speeds = BASE ** (-torch.arange(waves, dtype=torch.float64) / waves)
    places = torch.meshgrid(*(torch.arange(length, dtype=torch.float64) for length in grid), indexing="ij")
    angles = [place.flatten()[:, None] * speeds for place in places]
    found = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()
    return F.pad(found, (0, dim - found.shape[1]))[None]


def resized_positions(
    positions: Float[Tensor, "1 n d"], grid: tuple[int, ...], wanted: tuple[int, ...]
) -> Float[Tensor, "1 m d"]:
    """Return the positions of ``grid`` for the grid ``wanted``, (bi/tri)linearly between them.

    Both grids span the same image: the centres of patches stay in place, as ``F.interpolate`` does it without
    ``align_corners``.
    """
    if grid == wanted:
        return positions
    mode = "bilinear" if len(grid) == 2 else "trilinear"
    apart = positions.transpose(1, 2).unflatten(2, grid)
    return F.interpolate(apart, wanted, mode=mode).reshape(1, positions.shape[2], prod(wanted)).transpose(1, 2)
