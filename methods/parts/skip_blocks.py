"""SkipBlocks: the residual blocks between the image, the encoder's maps and Swin UNETR's decoder.

Paper:     Hatamizadeh et al., "Swin UNETR", BrainLes 2021.
Reference: MONAI's ``SwinUNETR``, its encoder1, encoder2, encoder3, encoder4 and encoder10.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from methods.encoders import Encoder


class SkipBlocks(nn.Module):
    """One block for the image and for each map except the last but one, which the decoder takes as it is.

    out_channels   of all blocks together
    """

    def __init__(self, encoder: Encoder) -> None:
        from monai.networks.blocks.unetr_block import UnetrBasicBlock

        super().__init__()
        channels = encoder.channels
        widths = [(encoder.in_channels, channels[0]), *((width, width) for width in (*channels[:-2], channels[-1]))]
        self.blocks = nn.ModuleList(
            UnetrBasicBlock(
                encoder.spatial_dims, wide, out, kernel_size=3, stride=1, norm_name="instance", res_block=True
            )
            for wide, out in widths
        )
        self.out_channels = sum(out for _, out in widths)

    def forward(self, images: Float[Tensor, "b c *s"], maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the blocks' outputs, finest first; the coarsest map needs two voxels or more."""
        inputs = [images, *maps[:-2], maps[-1]]
        return [block(x) for block, x in zip(self.blocks, inputs, strict=True)]
