"""Levels: which maps of an encoder a detector looks at.

They are the maps at least 4 times coarser than the image in its plane: those of strides 4, 8, 16 and 32 of a residual
network, and of 4, 8 and 16 of a U-Net. Of several maps of one stride, as a ViT has, it is the last. Other maps take
part only through the later ones that are made of them; so no weight of an encoder is left without a gradient.
"""

from dataclasses import dataclass
from math import prod

from methods.encoders import Encoder

FINEST_STRIDE = 4
USUAL_SLICES = 9  # of MP3D and SVD-Net


@dataclass(frozen=True)
class DetectorLevel:
    """A map of an encoder: its place among the maps, its channels, its stride in the plane, its planes (0 in 2D)."""

    place: int
    channels: int
    stride: int
    depth: int = 0


def detector_levels(encoder: Encoder, slices: int | None) -> tuple[DetectorLevel, ...]:
    """Return the levels of an encoder, finest first; ``slices`` is the depth of its volumes, None for images.

    Raises ValueError where it has none.
    """
    levels, depth, stride = [], slices or 0, 1
    for place, channels in enumerate(encoder.channels):
        *along, height, width = encoder.steps[place]
        followed = place + 1 < len(encoder.steps) and prod(encoder.steps[place + 1]) == 1
        assert height == width, "encoders stride alike along height and width"
        stride *= height
        depth = -(-depth // along[0]) if along else 0
        if stride >= FINEST_STRIDE and not followed:
            levels.append(DetectorLevel(place, channels, stride, depth))
    if not levels:
        raise ValueError(
            f"detection: the encoder's coarsest map has stride {stride} in the plane, expected at least "
            f"{FINEST_STRIDE}; take an encoder with more or larger strides"
        )
    return tuple(levels)


def slices_for(encoder: Encoder, asked: int | None) -> int | None:
    """Return how many slices a 3D encoder sees: those that are asked for, or nine, or the next number that it takes.

    None for a 2D encoder. Raises ValueError where it does not take the number that is asked for.
    """
    if encoder.spatial_dims == 2:
        if asked is not None:
            raise ValueError(
                f"downstream.task.slices {asked}: the encoder sees images; take a 3D encoder, or leave slices out"
            )
        return None
    multiple = 1 if encoder.rounds_up else encoder.strides[0]
    fitting = -(-(asked or USUAL_SLICES) // multiple) * multiple
    if asked not in (None, fitting):
        raise ValueError(
            f"downstream.task.slices {asked} is not a multiple of the encoder's stride {multiple} along the depth; "
            f"use {fitting}"
        )
    return fitting
