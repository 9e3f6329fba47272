"""Sizes given as one number or one per spatial axis, and whether an encoder takes them."""

from typing import TypeVar

Number = TypeVar("Number", int, float)
# Voxels per axis of what transformers and masked autoencoders see, by the number of axes, where a config gives none.
USUAL_SIDE = {2: 224, 3: 96}


def per_axis(size: Number | tuple[Number, ...], spatial_dims: int, field: str) -> tuple[Number, ...]:
    """Return a size with one number per axis; raise ValueError, naming the config's field, for other axes."""
    sizes = size if isinstance(size, tuple) else (size,) * spatial_dims
    if len(sizes) != spatial_dims:
        raise ValueError(
            f"{field} {sizes} has {len(sizes)} axes, the encoder has {spatial_dims}; "
            "give one number, or one per spatial axis"
        )
    return sizes


def check_stride(sizes: tuple[int, ...], strides: tuple[int, ...], field: str) -> None:
    """Raise ValueError, naming the config's field, where a size is not a multiple of an encoder's stride there."""
    for length, stride in zip(sizes, strides, strict=True):
        if length % stride:
            raise ValueError(
                f"{field} {sizes}: {length} is not a multiple of the encoder's stride {stride}; "
                f"use {stride * max(1, round(length / stride))}"
            )


def check_coarsest(sizes: tuple[int, ...], strides: tuple[int, ...], field: str) -> None:
    """Raise ValueError, naming the config's field, where an image's coarsest map cannot be normalised."""
    if sizes == strides:
        raise ValueError(
            f"{field} {sizes}: the coarsest map would be a single voxel, which instance normalisation cannot take; "
            f"make one of the sizes {2 * strides[-1]}"
        )
