"""Which encoders there are to build; and one without weights, so that slow references can follow a method."""

from typing import get_args

import pytest
from torch import Tensor, nn

from methods.encoders import ENCODERS, Encoder

DIMS = {name: get_args(kind.Config.model_fields["spatial_dims"].annotation) for name, kind in ENCODERS.items()}
"""How many spatial dimensions each encoder can have."""
BUILDS = [(name, number) for name, numbers in DIMS.items() for number in numbers]
EACH_BUILD = [pytest.param(*build, marks=() if build[0] == "unet" else pytest.mark.slow) for build in BUILDS]
"""The fast tests see one encoder: the more methods there are, the longer all pairs take."""


class Pixels(Encoder):
    """Its only map is the image."""

    def __init__(self, spatial_dims: int, channels: int = 1) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.channels, self.stride = spatial_dims, channels, (channels,), 1

    def maps(self, x: Tensor) -> list[Tensor]:
        return [x]

    def levels(self) -> list[nn.Module]:
        return []
