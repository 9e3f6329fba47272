"""Standardise: remove brightness and contrast from images."""

from jaxtyping import Float
from torch import Tensor

FLAT = 1e-6  # smallest divisor: an image of one brightness becomes 0


def standardise(images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
    """Bring each channel of each image to mean 0 and deviation 1."""
    values = images.flatten(2)
    centred = values - values.mean(2, keepdim=True)
    deviation = centred.square().mean(2, keepdim=True).sqrt()
    return (centred / deviation.clamp(min=FLAT)).view_as(images)
