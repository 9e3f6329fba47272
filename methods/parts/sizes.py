"""Sizes given as one number or one per spatial axis, and whether an encoder takes them."""

from typing import TypeVar

Number = TypeVar("Number", int, float)


def per_axis(size: Number | tuple[Number, ...], spatial_dims: int, field: str) -> tuple[Number, ...]:
    """Return a size with one number per axis; raise ValueError, naming the config's field, for other axes."""
    sizes = size if isinstance(size, tuple) else (size,) * spatial_dims
    if len(sizes) != spatial_dims:
        raise ValueError(
            f"{field} {sizes} has {len(sizes)} axes, the encoder has {spatial_dims}; "
            "give one number, or one per spatial axis"
        )
    return sizes


def check_stride(sizes: tuple[int, ...], stride: int, field: str) -> None:
    """Raise ValueError, naming the config's field, where a size is not a multiple of an encoder's stride."""
    if wrong := [length for length in sizes if length % stride]:
        raise ValueError(
            f"{field} {sizes}: {wrong[0]} is not a multiple of the encoder's stride {stride}; "
            f"use {stride * max(1, round(wrong[0] / stride))}"
        )


def check_coarsest(sizes: tuple[int, ...], stride: int, field: str) -> None:
    """Raise ValueError, naming the config's field, where an image's coarsest map cannot be normalised."""
    if all(length == stride for length in sizes):
        raise ValueError(
            f"{field} {sizes}: the coarsest map would be a single voxel, which instance normalisation cannot take; "
            f"make one of the sizes {2 * stride}"
        )
