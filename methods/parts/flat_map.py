"""The encoder's last map as one vector per image, its voxels kept apart, for heads that must know what is where."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from methods.encoders import Encoder


def flat_dim(encoder: Encoder, size: tuple[int, ...]) -> int:
    """Return the length of the vector of images of this size, which ``stride`` must divide."""
    return encoder.channels[-1] * prod(length // encoder.stride for length in size)


def flat_features(encoder: Encoder, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b f"]:
    """Return the flattened last map of each image, at least in float32: what follows is small, and bf16 is coarse."""
    feature = encoder.features(images)[-1].flatten(1)
    return feature.to(torch.promote_types(feature.dtype, torch.float32))
