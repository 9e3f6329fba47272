"""VNetEncoder: the contracting path of V-Net, residual stages with kernels of 5 voxels, in 2D and 3D.

Paper:     Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation",
           3DV 2016.
Reference: MONAI's ``VNet``, its parts ``in_tr`` and ``down_tr32`` ... ``down_tr256`` under the same keys. Batch norm,
           ELU and dropout of whole channels in the two coarsest stages are MONAI's; the paper has PReLU and no norm.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from methods.base import FrozenConfig
from methods.encoders.base import Encoder

ACTIVATION = ("elu", {"inplace": True})
STAGES = {"down_tr32": 1, "down_tr64": 2, "down_tr128": 3, "down_tr256": 2}  # convolutions of each
DROPPED = ("down_tr128", "down_tr256")


class VNetEncoder(Encoder):
    """Five feature maps at strides 1, 2, ... 16, with ``init_features`` x 1, 2, ... 16 channels."""

    class Config(FrozenConfig):
        """Defaults are the paper's, but for ``dropout``, which is MONAI's.

        init_features   channels of the finest map
        dropout         probability of a channel in the two coarsest stages, and in the decoder
        """

        name: Literal["vnet"] = "vnet"
        spatial_dims: Literal[2, 3]
        in_channels: PositiveInt = 1
        init_features: PositiveInt = 16
        dropout: float = Field(default=0.5, ge=0, lt=1)

        @model_validator(mode="after")
        def _repeats_channels(self) -> "VNetEncoder.Config":
            if self.init_features % self.in_channels:
                fitting = -(-self.init_features // self.in_channels) * self.in_channels
                raise ValueError(
                    f"encoder.init_features {self.init_features} is not a multiple of in_channels "
                    f"{self.in_channels}, which the first stage repeats; use {fitting}"
                )
            return self

    def __init__(self, config: Config) -> None:
        from monai.networks.nets.vnet import DownTransition, InputTransition

        super().__init__()
        dims, width = config.spatial_dims, config.init_features
        self.in_tr = InputTransition(dims, config.in_channels, width, ACTIVATION)
        for level, (name, convolutions) in enumerate(STAGES.items()):
            dropout = config.dropout if name in DROPPED else None
            stage = DownTransition(dims, width * 2**level, convolutions, ACTIVATION, dropout, dropout_dim=dims)
            self.add_module(name, stage)
        self.config = config
        self.spatial_dims = dims
        self.in_channels = config.in_channels
        self.channels = tuple(width * 2**level for level in range(5))
        self.stride = 16

    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the five maps, finest first."""
        maps: list[Tensor] = []
        for level in self.levels():
            maps.append(level(maps[-1] if maps else x))
        return maps

    def levels(self) -> list[nn.Module]:
        """Return the first stage, and the four steps down."""
        return [self.in_tr, *map(self.get_submodule, STAGES)]
