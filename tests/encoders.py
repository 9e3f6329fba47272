"""An encoder without weights, so that slow references can follow a method."""

from torch import Tensor, nn

from methods.encoders import Encoder


class Pixels(Encoder):
    """Its only map is the image."""

    def __init__(self, spatial_dims: int, channels: int = 1) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.channels, self.stride = spatial_dims, channels, (channels,), 1

    def maps(self, x: Tensor) -> list[Tensor]:
        return [x]

    def levels(self) -> list[nn.Module]:
        return []
