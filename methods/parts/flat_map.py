"""The encoder's last map as one vector per image: flattened, for heads that need positions, or averaged."""

from math import prod

from jaxtyping import Float
from torch import Tensor

from methods.encoders import Encoder
from methods.parts.precision import at_least_float32


def flat_dim(encoder: Encoder, size: tuple[int, ...]) -> int:
    """Return the length of the flattened last map for images of this size, which the encoder takes."""
    lengths = (-(-length // stride) for length, stride in zip(size, encoder.strides, strict=True))
    return encoder.channels[-1] * prod(lengths)


def flat_features(encoder: Encoder, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b f"]:
    """Return each image's last map, flattened, at least in float32: the next layers are small, and bf16 is coarse."""
    return at_least_float32(encoder.features(images)[-1]).flatten(1)


def mean_features(encoder: Encoder, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d"]:
    """Return each image's last map averaged over space, at least in float32."""
    return at_least_float32(encoder.features(images)[-1]).flatten(2).mean(2)
