"""Transform: a named change of views. Numbers are drawn on the host, and applied in torch, by two functions."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from data.views.intervals import Probability
from data.views.rng import SampleRng


class Transform(BaseModel, ABC):
    """A change of views with its parameters; every subclass has a ``name``, and says what its numbers are.

    prob   share of the views that are changed
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prob: Probability = 1.0

    @abstractmethod
    def draw(self, size: tuple[int, ...], rng: SampleRng) -> Float[np.ndarray, "b k"]:
        """Draw k numbers per sample, for views of the given spatial size."""

    @abstractmethod
    def apply(self, images: Float[Tensor, "b c *s"], numbers: Float[np.ndarray, "b k"], rng: SampleRng) -> Tensor:
        """Return the images, each changed by its own numbers; ``rng`` is for noise of each voxel."""


class MovingTransform(Transform):
    """A transform by which voxels change places, so that labels and boxes have to follow."""

    @abstractmethod
    def move_labels(self, labels: Int[Tensor, "b *s"], numbers: Float[np.ndarray, "b k"]) -> Int[Tensor, "b *s"]:
        """Move the voxels of label maps as those of their images; beyond the image there is 0."""

    @abstractmethod
    def to_moved(self, numbers: Float[np.ndarray, "b k"], size: tuple[int, ...]) -> Float[np.ndarray, "b m m"]:
        """Return the matrices that take voxel indices (.., 1) of views to those of the moved views."""


def by_sample(values: Float[np.ndarray, " b"], images: Shaped[Tensor, "b c *s"]) -> Shaped[Tensor, "b *ones"]:
    """Return one number per sample on the images' device, to be broadcast over channels and voxels."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(images).view(-1, *[1] * (images.ndim - 1))
