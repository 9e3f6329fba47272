"""GenesisUNetEncoder: the contracting path of the 3D U-Net in which Models Genesis and TransVW are released.

Paper:     Zhou et al., "Models Genesis", Medical Image Analysis 2021; Haghighi et al., "Transferable Visual Words",
           IEEE TMI 2021.
Reference: MrGiovanni/ModelsGenesis @ 104f487, ``pytorch/unet3d.py``, its parts ``down_tr64`` ... ``down_tr512`` under
           the same keys; fhaghighi/TransVW @ 1664586 has the same encoder.
Variants:  the released norm takes a batch's own statistics in evaluation too, though it keeps running ones; here, as
           anywhere else, evaluation takes the running ones, so that an image's maps do not depend on its neighbours.
"""

from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.encoders.base import Encoder

STAGES = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")


class GenesisConvolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b e d h w"]:
        """Return the map."""
        return self.activation(self.bn1(self.conv1(x)))


class GenesisStage(nn.Module):
    """Two convolutions, of which the second doubles the channels of the first."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(GenesisConvolution(in_channels, width), GenesisConvolution(width, 2 * width))

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b e d h w"]:
        """Return the map."""
        return self.ops(x)


class GenesisUNetEncoder(Encoder):
    """Four feature maps at strides 1, 2, 4 and 8 with ``init_features`` x 2, 4, 8 and 16 channels."""

    class Config(FrozenConfig):
        """Defaults are those of the release.

        init_features   channels of the first convolution
        """

        name: Literal["genesis_unet"] = "genesis_unet"
        spatial_dims: Literal[3] = 3
        in_channels: PositiveInt = 1
        init_features: PositiveInt = 32

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.init_features * 2**stage for stage in range(len(STAGES))]
        taken = [config.in_channels, *(2 * width for width in widths)]
        for name, (before, _), width in zip(STAGES, pairwise(taken), widths, strict=True):
            self.add_module(name, GenesisStage(before, width))
        self.pool = nn.MaxPool3d(2)
        self.config = config
        self.spatial_dims = 3
        self.in_channels = config.in_channels
        self.channels = tuple(2 * width for width in widths)
        self.stride = 2 ** (len(STAGES) - 1)

    def maps(self, x: Float[Tensor, "b c d h w"]) -> list[Tensor]:
        """Return the four maps, finest first."""
        maps: list[Tensor] = []
        for level in self.levels():
            maps.append(level(self.pool(maps[-1]) if maps else x))
        return maps

    def levels(self) -> list[nn.Module]:
        """Return the four pairs of convolutions."""
        return [self.get_submodule(name) for name in STAGES]
