"""PooledUNetEncoder: a U-Net's contracting path with batch norm and dropout, pooled once more at its end.

Paper:     Taleb et al., "3D Self-Supervised Methods for Medical Imaging", NeurIPS 2020 (seed 004), its 3D U-Net.
Reference: HealthML/self-supervised-3d-tasks @ ecc86ef, ``unet3d``: 3,535,440, 3,535,872 and 3,536,736 parameters for
           1, 2 and 4 channels. Epsilon and momentum of batch norm are torch's here, not Keras'.
"""

from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.encoders.base import Encoder


class TwoConvolutions(nn.Sequential):
    """Convolution, ReLU, batch norm, dropout, convolution, ReLU, batch norm."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, dropout: float) -> None:
        convolution = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[spatial_dims - 2]
        super().__init__(
            convolution(in_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            norm(out_channels),
            nn.Dropout(dropout),
            convolution(out_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            norm(out_channels),
        )


class PooledUNetEncoder(Encoder):
    """Six feature maps at strides 1, 2, ... 32; the last is the one before it, pooled."""

    class Config(FrozenConfig):
        """Defaults are the paper's.

        dropout  probability of a value, before the second convolution. Dropout shifts averaged features between
                 training and evaluation; a head whose batch norm magnifies small differences may then give the
                 same answer to all samples: use 0 where accuracy is far higher in training than in evaluation
        """

        name: Literal["pooled_unet"] = "pooled_unet"
        spatial_dims: Literal[2, 3]
        in_channels: PositiveInt = 1
        features: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (16, 32, 64, 128, 256)
        dropout: float = Field(default=0.5, ge=0, lt=1)

    def __init__(self, config: Config) -> None:
        super().__init__()
        dims, widths = config.spatial_dims, (config.in_channels, *config.features)
        self.convolutions = nn.ModuleList(
            TwoConvolutions(dims, before, after, config.dropout) for before, after in pairwise(widths)
        )
        self.pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](2)
        self.config = config
        self.spatial_dims = dims
        self.in_channels = config.in_channels
        self.channels = (*config.features, config.features[-1])
        self.stride = 2 ** len(config.features)

    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the six maps, finest first."""
        maps: list[Tensor] = []
        for level in self.convolutions:
            maps.append(level(self.pool(maps[-1]) if maps else x))
        return [*maps, self.pool(maps[-1])]

    def levels(self) -> list[nn.Module]:
        """Return the five pairs of convolutions."""
        return list(self.convolutions)
