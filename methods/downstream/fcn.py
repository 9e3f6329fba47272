"""FCN: a light decoder, which joins the maps of a residual network's stem, second and fourth stage.

Paper:     Zhang et al., SVD-Net (seed 003), section IV-C 1: two convolutions, each after an upsampling, for nodules.
Reference: urmagicsmine/CSPR @ 390a413, ``lidc_fcn_head.py``. There the stem has the image's size; where it has not,
           logits are interpolated here.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from methods.encoders import Encoder
from methods.parts.precision import keep_in_float32

NUM_MAPS = 5
NARROWED = 4  # how many times fewer channels the last layer sees


class FCN(nn.Module):
    """The encoder itself, two layers on joined maps, as wide as the coarsest map, and two that classify voxels."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        if len(encoder.channels) != NUM_MAPS:
            raise ValueError(
                f"downstream.task.decoder fcn joins the first, third and fifth of {NUM_MAPS} maps, the encoder has "
                f"{len(encoder.channels)}; take the encoder resnet or resnet3d, or decoder=unet"
            )
        dims = encoder.spatial_dims
        stem, _, middle, _, coarsest = encoder.channels
        narrow = max(1, coarsest // NARROWED)
        self.encoder = encoder
        self.join_middle = _layer(dims, middle + coarsest, coarsest, 1)
        self.join_stem = _layer(dims, stem + coarsest, coarsest, 1)
        self.narrow = _layer(dims, coarsest, narrow, 3)
        self.classify = (nn.Conv2d, nn.Conv3d)[dims - 2](narrow, num_classes, 1)
        keep_in_float32(self.classify)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        """Return logits."""
        stem, _, middle, _, coarsest = self.encoder.features(x)
        joined = self.join_middle(torch.cat([middle, _enlarged(coarsest, middle)], dim=1))
        joined = self.join_stem(torch.cat([stem, _enlarged(joined, stem)], dim=1))
        logits = self.classify(self.narrow(joined))
        if logits.shape[2:] == x.shape[2:]:
            return logits
        return F.interpolate(logits, x.shape[2:], mode="bilinear" if x.ndim == 4 else "trilinear")


def _layer(dims: int, taken: int, given: int, kernel: int) -> nn.Sequential:
    convolution: Any = (nn.Conv2d, nn.Conv3d)[dims - 2]
    norm = (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2]
    return nn.Sequential(
        convolution(taken, given, kernel, padding=kernel // 2, bias=False), norm(given), nn.ReLU(inplace=True)
    )


def _enlarged(coarse: Tensor, fine: Tensor) -> Tensor:
    """Repeat the voxels of a map until it has another map's size."""
    return F.interpolate(coarse, fine.shape[2:], mode="nearest")
