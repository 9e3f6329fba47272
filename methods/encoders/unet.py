"""UNetEncoder: the contracting path of a U-Net, in 2D and 3D.

Paper:     Falk et al., "U-Net: deep learning for cell counting, detection, and morphometry", Nature Methods 2019.
Reference: MONAI's ``BasicUNet``, its parts ``conv_0`` and ``down_1`` ... ``down_4`` under the same keys.
"""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.encoders.base import Encoder

ACTIVATION = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True})


def norm_layer(kind: str) -> tuple[str, dict[str, bool]]:
    """Return MONAI's name and arguments for a normalisation with weights."""
    return kind, {"affine": True}


class UNetEncoder(Encoder):
    """Five feature maps at strides 1, 2, ... 16."""

    class Config(FrozenConfig):
        """``features`` are BasicUNet's six: five levels of the encoder, and the decoder's last map.

        norm   batch works with every method. instance, BasicUNet's default, leaves each channel of a map with nearly
               the same mean for every image: methods that average the last map (SimSiam, VoCo, a pooled classifier, a
               probe) learn next to nothing from such means
        """

        name: Literal["unet"] = "unet"
        spatial_dims: Literal[2, 3]
        in_channels: PositiveInt = 1
        features: Annotated[tuple[PositiveInt, ...], Field(min_length=6, max_length=6)] = (32, 32, 64, 128, 256, 32)
        norm: Literal["instance", "batch"] = "batch"

    def __init__(self, config: Config) -> None:
        from monai.networks.nets.basic_unet import Down, TwoConv

        super().__init__()
        dims, widths, norm = config.spatial_dims, config.features, norm_layer(config.norm)
        self.conv_0 = TwoConv(dims, config.in_channels, widths[0], ACTIVATION, norm, bias=True)
        self.down_1 = Down(dims, widths[0], widths[1], ACTIVATION, norm, bias=True)
        self.down_2 = Down(dims, widths[1], widths[2], ACTIVATION, norm, bias=True)
        self.down_3 = Down(dims, widths[2], widths[3], ACTIVATION, norm, bias=True)
        self.down_4 = Down(dims, widths[3], widths[4], ACTIVATION, norm, bias=True)
        self.config = config
        self.spatial_dims = dims
        self.in_channels = config.in_channels
        self.channels = widths[:5]
        self.stride = 16
        self.means_differ = config.norm != "instance"

    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the five maps, finest first."""
        maps: list[Tensor] = []
        for level in self.levels():
            maps.append(level(maps[-1] if maps else x))
        return maps

    def levels(self) -> list[nn.Module]:
        """Return the first convolutions, and the four steps down."""
        return [self.conv_0, self.down_1, self.down_2, self.down_3, self.down_4]
