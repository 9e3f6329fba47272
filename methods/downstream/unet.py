"""UNet: a U-Net's expanding path, with batch norm and dropout, for encoders without a network in MONAI.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004).
Reference: HealthML/self-supervised-3d-tasks @ ecc86ef: a new decoder of 128, 64, 32 and 16 channels for fine-tuning.
"""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.encoders import Encoder
from methods.encoders.pooled_unet import TwoConvolutions
from methods.parts.precision import keep_in_float32


class UNet(nn.Module):
    """The encoder itself, and per width a transposed convolution, a block, and the encoder's map of that size.

    num_maps   number of the encoder's maps that are used, finest first
    widths     channels of the blocks, coarsest first; those beyond the encoder's finest map have no map to take
    steps      how many times finer each block's map is than the one before, per axis; by default twice, along all
    """

    def __init__(
        self,
        encoder: Encoder,
        num_maps: int,
        widths: tuple[int, ...],
        dropout: float,
        num_classes: int,
        steps: tuple[tuple[int, ...], ...] | None = None,
    ) -> None:
        super().__init__()
        dims = encoder.spatial_dims
        transposed: Any = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2]
        *skips, coarsest = encoder.channels[:num_maps]
        taken = [*reversed(skips), *[0] * (len(widths) - len(skips))]
        self.encoder = encoder
        self.num_maps = num_maps
        self.ups = nn.ModuleList(
            transposed(below, above, step, stride=step)
            for (below, above), step in zip(
                pairwise((coarsest, *widths)), steps or [(2,) * dims] * len(widths), strict=True
            )
        )
        self.blocks = nn.ModuleList(
            TwoConvolutions(dims, skip + width, width, dropout) for skip, width in zip(taken, widths, strict=True)
        )
        self.classify = (nn.Conv2d, nn.Conv3d)[dims - 2](widths[-1], num_classes, 1)
        keep_in_float32(self.classify)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        """Return logits."""
        *skips, x = self.encoder.features(x)[: self.num_maps]
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = up(x)
            x = block(torch.cat([skips.pop(), x], dim=1) if skips else x)
        return self.classify(x)
