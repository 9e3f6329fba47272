"""Encoder: what every encoder exposes to pretraining methods and downstream tasks."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """A network from images to feature maps.

    channels       of the maps, finest first
    stride         which input sizes must be a multiple of
    means_differ   whether a channel's mean over the last map tells images apart; after instance norm it hardly does
    """

    spatial_dims: int
    in_channels: int
    channels: tuple[int, ...]
    stride: int
    means_differ: bool = True

    @abstractmethod
    def features(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the feature maps, finest first."""

    @abstractmethod
    def levels(self) -> list[nn.Module]:
        """Return the parts that images pass one after the other, first the one that sees them."""
