"""SlicesEncoder: a 2D encoder that sees each axial slice of a volume, so that slices and volumes share its weights.

Paper:     none of its own: the slice-wise ("2.5D") baseline beside 3D networks. A task on volumes can begin with what
           was learnt from slices, and the part ``slices`` serves tasks in 2D.
"""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from methods.base import FrozenConfig
from methods.encoders.base import Encoder
from methods.encoders.conv_unets import PlainConvUNetEncoder, ResidualEncoderUNetEncoder
from methods.encoders.densenet import DenseNetEncoder
from methods.encoders.pooled_unet import PooledUNetEncoder
from methods.encoders.pyramid_transformer import PyramidTransformerEncoder
from methods.encoders.resnet import ResNetEncoder
from methods.encoders.swin_unetr import SwinEncoder
from methods.encoders.unet import UNetEncoder
from methods.encoders.vit import ViTEncoder
from methods.encoders.vnet import VNetEncoder

OF_SLICES: dict[str, type[Encoder]] = {
    "unet": UNetEncoder,
    "pooled_unet": PooledUNetEncoder,
    "densenet": DenseNetEncoder,
    "resnet": ResNetEncoder,
    "swin_unetr": SwinEncoder,
    "plain_conv_unet": PlainConvUNetEncoder,
    "residual_encoder_unet": ResidualEncoderUNetEncoder,
    "pyramid_transformer": PyramidTransformerEncoder,
    "vit": ViTEncoder,
    "vnet": VNetEncoder,
}
SliceEncoderConfig = Annotated[
    UNetEncoder.Config
    | PooledUNetEncoder.Config
    | DenseNetEncoder.Config
    | ResNetEncoder.Config
    | SwinEncoder.Config
    | PlainConvUNetEncoder.Config
    | ResidualEncoderUNetEncoder.Config
    | PyramidTransformerEncoder.Config
    | ViTEncoder.Config
    | VNetEncoder.Config,
    Field(discriminator="name"),
]


def check_slices(slices: SliceEncoderConfig, in_channels: int) -> None:
    """Raise ValueError where an encoder of slices does not take those of a volume with so many channels."""
    found = (slices.spatial_dims, slices.in_channels)
    if found != (2, in_channels):
        raise ValueError(
            f"slices: spatial_dims {found[0]} and in_channels {found[1]}; expected 2 and {in_channels}, those of a "
            "slice of the volume"
        )


def flat_slices(volumes: Float[Tensor, "b c d h w"]) -> Float[Tensor, "bd c h w"]:
    """Return the slices of all volumes, one after the other."""
    return volumes.transpose(1, 2).flatten(0, 1)


def stacked(flat: Float[Tensor, "bd c y x"], volumes: Float[Tensor, "b _ d h w"]) -> Float[Tensor, "b c z y x"]:
    """Stack a map of all slices along the depth, and average it there to its stride within a slice."""
    images, _, depth, height, _ = volumes.shape
    return avg_pool3d(flat.unflatten(0, (images, depth)).transpose(1, 2), (height // flat.shape[2], 1, 1))


class SlicesEncoder(Encoder):
    """The maps of a 2D encoder, stacked along the depth and averaged there to their stride within a slice.

    In training, batch norm inside the encoder of slices takes the slices of all volumes together as its batch.
    """

    class Config(FrozenConfig):
        """``slices`` is the encoder of slices: it has two spatial dimensions, and the channels of the volume."""

        name: Literal["slices"] = "slices"
        spatial_dims: Literal[3] = 3
        in_channels: PositiveInt = 1
        slices: SliceEncoderConfig = UNetEncoder.Config(spatial_dims=2)

        @model_validator(mode="after")
        def _sees_slices(self) -> "SlicesEncoder.Config":
            check_slices(self.slices, self.in_channels)
            return self

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.slices: Encoder = OF_SLICES[config.slices.name](config.slices)
        self.config = config
        self.spatial_dims = 3
        self.in_channels = config.in_channels
        self.channels = self.slices.channels
        self.stride = self.slices.stride
        self.means_differ = self.slices.means_differ

    def maps(self, x: Float[Tensor, "b c d h w"]) -> list[Tensor]:
        """Return as many maps as the encoder of slices has, finest first."""
        return [stacked(flat, x) for flat in self.slices.maps(flat_slices(x))]

    def levels(self) -> list[nn.Module]:
        """Return the levels of the encoder of slices."""
        return self.slices.levels()
