"""Encoder: the interface of every encoder to pretraining methods and downstream tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor, nn

from methods.parts.chunks import InChunks, in_chunks


class Encoder(InChunks, ABC):
    """A network from images to feature maps.

    maps           the feature maps of images, each on its own, finest first
    channels       channels of the maps
    stride         the number of which input sizes must be multiples: the largest, where axes differ
    strides        the same along each axis
    rounds_up      whether other sizes are taken too: each map is then rounded up
    means_differ   whether a channel's mean over the last map differs between images: not after instance norm
    """

    Config: ClassVar[type[BaseModel]]
    spatial_dims: int
    in_channels: int
    channels: tuple[int, ...]
    stride: int
    rounds_up: bool = False
    means_differ: bool = True

    @property
    def strides(self) -> tuple[int, ...]:
        """The numbers of which input sizes must be multiples, one per axis."""
        return (self.stride,) * self.spatial_dims

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """How many times coarser each map is than the one before, or than the image, along each axis.

        By default twice, but for the first map, which is coarser by what is left of the strides.
        """
        halvings = len(self.channels) - 1
        first = tuple(stride // 2**halvings for stride in self.strides)
        return (first, *[(2,) * self.spatial_dims] * halvings)

    @abstractmethod
    def maps(self, x: Float[Tensor, "b c *s"]) -> list[Tensor]:
        """Compute the feature maps in one pass, finest first."""

    def features(
        self, x: Float[Tensor, "b c *s"], maps: Callable[[Tensor], list[Tensor]] | None = None
    ) -> list[Tensor]:
        """Return the feature maps, finest first, computed in ``num_chunks`` chunks, by ``maps`` if it is given."""
        return in_chunks(self, maps or self.maps, x, self.num_chunks)

    def unreached(self) -> list[nn.Parameter]:
        """Return the parameters that are for images of other dimensions, and do not learn from those of its own."""
        return []

    @abstractmethod
    def levels(self) -> list[nn.Module]:
        """Return the parts that images pass one after the other, from the input on."""
