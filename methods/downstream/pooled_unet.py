"""PooledUNet: a U-Net's expanding path on an encoder with batch norm and dropout.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004).
Reference: HealthML/self-supervised-3d-tasks @ ecc86ef: a new decoder of 128, 64, 32 and 16 channels for fine-tuning.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.encoders.pooled_unet import PooledUNetEncoder, TwoConvolutions


class PooledUNet(nn.Module):
    """The encoder itself, and for each of its levels a transposed convolution, the level's map and a block."""

    def __init__(self, encoder: PooledUNetEncoder, num_classes: int) -> None:
        super().__init__()
        config, dims = encoder.config, encoder.spatial_dims
        transposed = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2]
        widths = config.features[::-1]
        self.encoder = encoder
        self.ups = nn.ModuleList(transposed(below, above, 2, stride=2) for below, above in pairwise(widths))
        self.blocks = nn.ModuleList(TwoConvolutions(dims, 2 * width, width, config.dropout) for width in widths[1:])
        self.classify = (nn.Conv2d, nn.Conv3d)[dims - 2](widths[-1], num_classes, 1)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        """Return logits; the encoder's last, pooled map is for pretraining and is left out."""
        *skips, x, _ = self.encoder.features(x)
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips), strict=True):
            x = block(torch.cat([skip, up(x)], dim=1))
        return self.classify(x)
