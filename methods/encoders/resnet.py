"""ResNetEncoder: residual stages behind a strided convolution, in 2D and 3D.

Paper:     He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; in 2D as Nguyen et al. (AAAI 2023,
           seed 000) use ResNet-50 on slices.
Reference: MONAI's ``ResNet``, of which it is made. In 2D its keys and shapes are those of torchvision's ``resnet18``,
           ``resnet34`` and ``resnet50`` without ``fc.*``, so that weights load strictly, both ways.
"""

from typing import Any, Literal

from jaxtyping import Float
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.encoders.base import Encoder

Depth = Literal[18, 34, 50]
BLOCKS: dict[Depth, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
STAGES = ("layer1", "layer2", "layer3", "layer4")
RGB = 3


class ResNetEncoder(Encoder):
    """Five feature maps at strides 2, 4, ... 32: of the first convolution, and of the four stages."""

    class Config(FrozenConfig):
        """Defaults are ResNet-50's.

        depth           18 and 34 are made of basic blocks, 50 of bottlenecks
        init_features   channels of the first convolution
        grey_to_rgb     show a grey image three times, as red, green and blue: weights of photographs then load
        """

        name: Literal["resnet"] = "resnet"
        spatial_dims: Literal[2, 3]
        in_channels: PositiveInt = 1
        depth: Depth = 50
        init_features: PositiveInt = 64
        grey_to_rgb: bool = False

        @model_validator(mode="after")
        def _is_grey(self) -> "ResNetEncoder.Config":
            if self.grey_to_rgb and self.in_channels != 1:
                raise ValueError(
                    f"encoder.grey_to_rgb with in_channels {self.in_channels}: only a grey image of 1 channel is "
                    "shown as three; set grey_to_rgb to false, or in_channels to 1"
                )
            return self

    def __init__(self, config: Config) -> None:
        from monai.networks.nets.resnet import ResNet

        super().__init__()
        network = ResNet(**monai_arguments(config))
        for name in ("conv1", "bn1", "act", "maxpool", *STAGES):
            self.add_module(name, network.get_submodule(name))
        widths = _widths(config)
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.in_channels = config.in_channels
        self.channels = (widths[0], *(width * (4 if config.depth == 50 else 1) for width in widths))
        self.stride = 32
        self.rounds_up = True

    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the five maps, finest first."""
        if self.config.grey_to_rgb:
            x = x.expand(-1, RGB, *x.shape[2:])
        maps: list[Tensor] = []
        for level in self.levels():
            maps.append(level(maps[-1] if maps else x))
        return maps

    def levels(self) -> list[nn.Module]:
        """Return the layers from each map to the next."""
        return levels_of(self)


def levels_of(resnet: nn.Module) -> list[nn.Module]:
    """Return a residual network's layers from each map to the next: the stem, and the four stages."""
    stem, first, *others = (("conv1", "bn1", "act"), ("maxpool", STAGES[0]), *STAGES[1:])
    joined = [nn.Sequential(*map(resnet.get_submodule, names)) for names in (stem, first)]
    return [*joined, *map(resnet.get_submodule, others)]


def monai_arguments(config: ResNetEncoder.Config) -> dict[str, Any]:
    """Return the arguments of MONAI's ``ResNet`` that has the encoder's keys and shapes, and no others."""
    return {
        "block": "bottleneck" if config.depth == 50 else "basic",
        "layers": BLOCKS[config.depth],
        "block_inplanes": _widths(config),
        "spatial_dims": config.spatial_dims,
        "n_input_channels": RGB if config.grey_to_rgb else config.in_channels,
        "conv1_t_stride": 2,
        "bias_downsample": False,
        "feed_forward": False,
    }


def _widths(config: ResNetEncoder.Config) -> tuple[int, ...]:
    return tuple(config.init_features * 2**stage for stage in range(len(STAGES)))
