"""Encoder: what every encoder exposes to pretraining methods and downstream tasks."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from methods.parts.chunks import InChunks, in_chunks


class Encoder(InChunks, ABC):
    """A network from images to feature maps.

    maps           the feature maps of images, each on its own, finest first
    channels       of the maps
    stride         which input sizes must be a multiple of
    means_differ   whether a channel's mean over the last map tells images apart; after instance norm it hardly does
    """

    spatial_dims: int
    in_channels: int
    channels: tuple[int, ...]
    stride: int
    means_differ: bool = True

    @abstractmethod
    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Compute the feature maps in one pass, finest first."""

    def features(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Return the feature maps, finest first, computed in as many chunks as was asked for."""
        return in_chunks(self, self.maps, x, self.num_chunks)

    @abstractmethod
    def levels(self) -> list[nn.Module]:
        """Return the parts that images pass one after the other, first the one that sees them."""
