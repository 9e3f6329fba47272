"""DenseNetEncoder: dense blocks and the transitions between them, in 2D and 3D.

Paper:     Huang et al., "Densely Connected Convolutional Networks", CVPR 2017; in 2D as Taleb et al. (NeurIPS 2020,
           seed 004) use it on fundus photographs.
Reference: MONAI's ``DenseNet121.features``: the state dict has its keys, so that weights load strictly.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.encoders.base import Encoder

# From one ReLU to the next, across MONAI's transitions. The last ReLU is the class layers' and has no weights.
LEVELS = (
    ("conv0", "norm0", "relu0"),
    ("pool0", "denseblock1", "transition1.norm", "transition1.relu"),
    ("transition1.conv", "transition1.pool", "denseblock2", "transition2.norm", "transition2.relu"),
    ("transition2.conv", "transition2.pool", "denseblock3", "transition3.norm", "transition3.relu"),
    ("transition3.conv", "transition3.pool", "denseblock4", "norm5", "relu0"),
)


class DenseNetEncoder(Encoder):
    """Five feature maps at strides 2, 4, ... 32, each normalised and rectified as the next layer takes it."""

    class Config(FrozenConfig):
        """Defaults are DenseNet-121's.

        growth_rate     channels that each layer of a block adds
        block_config    layers per block
        init_features   channels of the first convolution
        dropout         probability, after each layer of a block
        """

        name: Literal["densenet"] = "densenet"
        spatial_dims: Literal[2, 3]
        in_channels: PositiveInt = 1
        growth_rate: PositiveInt = 32
        block_config: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (6, 12, 24, 16)
        init_features: int = Field(default=64, gt=1)
        dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config) -> None:
        from monai.networks.nets.densenet import DenseNet

        super().__init__()
        network = DenseNet(
            spatial_dims=config.spatial_dims,
            in_channels=config.in_channels,
            out_channels=1,
            init_features=config.init_features,
            growth_rate=config.growth_rate,
            block_config=config.block_config,
            dropout_prob=config.dropout,
        )
        # MONAI keeps its layers in ``features``, but every encoder here has a method of that name.
        for name, layer in network.features.named_children():
            self.add_module(name, layer)
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.in_channels = config.in_channels
        self.channels = _channels(config)
        self.stride = 32

    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the five maps, finest first; the last is what MONAI's class layers pool."""
        maps: list[Tensor] = []
        for level in self.levels():
            maps.append(level(maps[-1] if maps else x))
        return maps

    def levels(self) -> list[nn.Module]:
        """Return the layers from each map to the next."""
        return [nn.Sequential(*map(self.get_submodule, names)) for names in LEVELS]


def _channels(config: DenseNetEncoder.Config) -> tuple[int, ...]:
    """Return the channels of the maps: a block adds to its input's; a transition passes half of them on."""
    channels, taken = [config.init_features], config.init_features
    for layers in config.block_config:
        channels.append(taken + layers * config.growth_rate)
        taken = channels[-1] // 2
    return tuple(channels)
