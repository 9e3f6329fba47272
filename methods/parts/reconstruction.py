"""Reconstruction: a decoder from an encoder's maps to voxels, for methods that restore or label them.

Paper:     Ronneberger et al., "U-Net", MICCAI 2015. Blocks and batch norm are those of ``downstream/unet.py``.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.encoders import Encoder
from methods.encoders.pooled_unet import TwoConvolutions
from methods.parts.precision import keep_in_float32

WIDEST = 256  # channels: the coarse maps of a ResNet-50 are far wider than what their voxels need


class Reconstruction(nn.Module):
    """Per step up a transposed convolution, the encoder's map of that size, and two convolutions; then one layer.

    A block is as wide as the encoder's map of its size, at most ``WIDEST``; where the finest map is coarser than the
    image, a last block is half as wide as that map. Without ``skips`` only the coarsest map is decoded.

    widths   of the blocks' maps, coarsest first
    """

    def __init__(self, encoder: Encoder, out_channels: int, skips: bool = True) -> None:
        super().__init__()
        dims = encoder.spatial_dims
        transposed: Any = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2]
        *finer, coarsest = encoder.channels
        beyond = 1 if prod(encoder.steps[0]) > 1 else 0
        steps = encoder.steps[:0:-1] + encoder.steps[:beyond]
        taken = [*reversed(finer), *[0] * beyond]
        widths = [min(WIDEST, width) for width in reversed(finer)]
        widths += [max(1, (widths or [coarsest])[-1] // 2)] * beyond
        self.skips, self.widths = skips, tuple(widths)
        self.ups = nn.ModuleList(
            transposed(below, above, step, stride=step)
            for (below, above), step in zip(pairwise((coarsest, *widths)), steps, strict=True)
        )
        self.blocks = nn.ModuleList(
            TwoConvolutions(dims, width + skip * skips, width, dropout=0.0)
            for width, skip in zip(widths, taken, strict=True)
        )
        self.out = (nn.Conv2d, nn.Conv3d)[dims - 2](widths[-1] if widths else coarsest, out_channels, 1)
        keep_in_float32(self.out)

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "b k *s"]:
        """Decode an encoder's maps, finest first."""
        return self.out(self.decoded(maps)[-1])

    def decoded(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the coarsest map and what each block makes of it, coarsest first."""
        *finer, x = maps
        found = [x]
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = up(found[-1])
            found.append(block(torch.cat([finer.pop(), x], dim=1) if self.skips and finer else x))
        return found
