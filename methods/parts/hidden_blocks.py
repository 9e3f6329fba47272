"""Hidden blocks: which equal blocks of a crop are hidden, and what is predicted of them.

Shapes:    B samples, C channels, *s spatial axes, *g blocks of a crop along each, N blocks in all, K visible ones,
           p voxels of a block in all channels.
"""

from math import ceil, prod
from typing import Literal

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from data.exact import exact
from data.views.rng import SampleRng
from methods.parts.precision import full_precision

Distance = Literal["squared", "absolute"]
FLAT = 1e-6  # added to a block's variance, as in the released codes of MAE and SparK


def blocks_along(size: tuple[int, ...], block: tuple[int, ...], field: str) -> tuple[int, ...]:
    """Return how many blocks a crop has along each axis; raise ValueError, naming its field, where blocks are cut."""
    if any(length % part for length, part in zip(size, block, strict=True)):
        raise ValueError(
            f"method.block {block} does not divide crops of {size} voxels; change method.block or {field}"
        )
    return tuple(length // part for length, part in zip(size, block, strict=True))


def count_hidden(ratio: float, blocks: tuple[int, ...]) -> int:
    """Return how many blocks are hidden, rounded up; raise ValueError where none would be left."""
    count = ceil(exact(ratio) * prod(blocks))
    if count == prod(blocks):
        raise ValueError(
            f"method.mask_ratio {ratio:g} hides all of the {count} blocks of a crop; lower method.mask_ratio or "
            "enlarge the crop"
        )
    return count


def draw_hidden(blocks: tuple[int, ...], count: int, rng: SampleRng) -> Bool[np.ndarray, "b *g"]:
    """Draw which blocks of each sample are hidden: ``count`` of them, uniformly."""
    ranks = rng.uniform(prod(blocks)).argsort(axis=1).argsort(axis=1)
    return (ranks < count).reshape(-1, *blocks)


def enlarge(hidden: Bool[Tensor, "b *g"], block: tuple[int, ...]) -> Bool[Tensor, "b 1 *s"]:
    """Give each voxel the value of its block."""
    for axis, length in enumerate(block, start=1):
        hidden = hidden.repeat_interleave(length, axis)
    return hidden[:, None]


def visible_places(hidden: Bool[Tensor, "b *g"], count: int) -> Int64[Tensor, "b k"]:
    """Return where the visible blocks of each sample are, in raster order; ``count`` blocks are hidden."""
    flat = hidden.flatten(1)
    return flat.int().argsort(dim=1, stable=True)[:, : flat.shape[1] - count]


def blocks_of(images: Float[Tensor, "b c *s"], block: tuple[int, ...]) -> Float[Tensor, "b n p"]:
    """Return the voxels of each block, blocks in raster order, channel by channel."""
    if len(block) == 2:
        height, width = block
        return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=height, q=width)
    depth, height, width = block
    return rearrange(images, "b c (d o) (h p) (w q) -> b (d h w) (c o p q)", o=depth, p=height, q=width)


@full_precision()
def normalised(blocks: Float[Tensor, "b n p"]) -> Float[Tensor, "b n p"]:
    """Bring each block to mean 0 and variance 1, the unbiased one."""
    centred = blocks - blocks.mean(-1, keepdim=True)
    return centred / (blocks.var(-1, keepdim=True) + FLAT).sqrt()


@full_precision()
def block_error(
    predicted: Float[Tensor, "b n p"],
    blocks: Float[Tensor, "b n p"],
    hidden: Bool[Tensor, "b *g"],
    distance: Distance,
) -> Float[Tensor, ""]:
    """Return the mean error over hidden blocks, of which all samples must have equally many, so that ranks agree."""
    difference = predicted - blocks
    errors = difference.square() if distance == "squared" else difference.abs()
    counted = hidden.flatten(1).to(errors)
    return (errors.mean(-1) * counted).sum() / counted.sum()


def mean_of_visible(blocks: Float[Tensor, "b n p"], hidden: Bool[Tensor, "b *g"]) -> Float[Tensor, "b n p"]:
    """Return the prediction that every hidden voxel is the mean of what is seen of its sample."""
    seen = ~hidden.flatten(1)[:, :, None]
    mean = (blocks * seen).sum((1, 2), keepdim=True) / (seen.sum((1, 2), keepdim=True) * blocks.shape[2])
    return mean.expand_as(blocks)
