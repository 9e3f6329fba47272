"""UNETR: a vision transformer whose maps a convolutional decoder enlarges and joins.

Paper:     Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022, section 3.1.
Reference: MONAI's ``UNETR``, of whose blocks it is made: the same keys and the same result. Other than MONAI's, it
           takes images of any size, whose positions the encoder interpolates, and transformers of any depth.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from methods.encoders.vit import ViTEncoder
from methods.parts.precision import keep_in_float32

PATCH = 16
FEATURE_SIZE = 16  # channels of the finest level; UNETR's and MONAI's


class UNETR(nn.Module):
    """The encoder itself, blocks for the image and for three of its maps, and four steps up from the last one."""

    def __init__(self, encoder: ViTEncoder, num_classes: int) -> None:
        from monai.networks.blocks.dynunet_block import UnetOutBlock
        from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock

        super().__init__()
        config = encoder.config
        if config.patch_size != PATCH:
            raise ValueError(
                f"encoder.patch_size {config.patch_size}: UNETR's decoder takes four steps up, from patches of "
                f"{PATCH} voxels; set encoder.patch_size to {PATCH}"
            )
        dims, tokens, widths = config.spatial_dims, config.hidden_size, [FEATURE_SIZE * 2**n for n in range(4)]
        size: dict[str, Any] = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        up: dict[str, Any] = {**size, "upsample_kernel_size": 2}
        self.vit = encoder
        self.encoder1 = UnetrBasicBlock(dims, config.in_channels, widths[0], stride=1, **size)
        self.encoder2, self.encoder3, self.encoder4 = (
            UnetrPrUpBlock(dims, tokens, widths[level], num_layer=3 - level, stride=1, conv_block=True, **up)
            for level in (1, 2, 3)
        )
        self.decoder5, self.decoder4, self.decoder3, self.decoder2 = (
            UnetrUpBlock(dims, below, above, **up)
            for below, above in zip((tokens, *widths[:0:-1]), widths[::-1], strict=True)
        )
        self.out = UnetOutBlock(dims, widths[0], num_classes)
        keep_in_float32(self.out)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        """Return logits."""
        fine, middle, coarse, last = self.vit.features(x)
        joined = self.decoder5(last, self.encoder4(coarse))
        joined = self.decoder4(joined, self.encoder3(middle))
        joined = self.decoder3(joined, self.encoder2(fine))
        return self.out(self.decoder2(joined, self.encoder1(x)))
