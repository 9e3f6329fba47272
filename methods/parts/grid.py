"""Grid: equal boxes that tile a sample, and boxes of the same size at random positions.

Lists of a grid follow the spatial axes, (D, H, W) or (H, W). A sample's size must be a multiple of the grid, so that
the boxes tile it; samples of a batch may differ in size, and then so do their boxes.
"""

import numpy as np
from jaxtyping import Float, Int

from data.views.rng import SampleRng


def check_tiles(grid: tuple[int, ...], extent: tuple[int, ...]) -> None:
    """Raise ValueError where a grid does not cut samples of this size into equal boxes."""
    if len(grid) != len(extent):
        raise ValueError(
            f"method.grid {grid} has {len(grid)} axes, samples of size {extent} have {len(extent)}; "
            "give one number per spatial axis"
        )
    for axis, number, length in zip("DHW"[-len(grid) :], grid, extent, strict=True):
        if length % number:
            near = tuple(g * max(1, round(s / g)) for g, s in zip(grid, extent, strict=True))
            raise ValueError(
                f"method.grid {grid}: samples of size {extent} cannot be cut into {number} equal bases along {axis} "
                f"({length} voxels); ingest with a recipe whose resize_to the grid divides, such as {list(near)}, "
                "or change method.grid"
            )


def tiles(extents: Int[np.ndarray, "b n"], grid: tuple[int, ...]) -> Int[np.ndarray, "b k 2 n"]:
    """Return the boxes of the grid, the last axis fastest; ``check_tiles`` must hold for every sample."""
    size = _tile_size(extents, grid)
    index = np.indices(grid).reshape(len(grid), -1).T
    low = index * size
    return np.stack([low, low + size], axis=2)


def uniform_tiles(
    extents: Int[np.ndarray, "b n"], grid: tuple[int, ...], count: int, rng: SampleRng
) -> Int[np.ndarray, "b r 2 n"]:
    """Draw ``count`` boxes of a tile's size for each sample, uniform over all positions inside it."""
    size = _tile_size(extents, grid)
    positions = extents[:, None] - size + 1
    low = np.minimum((rng.uniform(count, len(grid)) * positions).astype(np.int64), positions - 1)
    return np.stack([low, low + size], axis=2)


def overlap_shares(
    boxes: Int[np.ndarray, "b r 2 n"], others: Int[np.ndarray, "b k 2 n"]
) -> Float[np.ndarray, "b r k"]:
    """Return the share of each box that lies in each of the others: over the tiles of a grid they sum to 1."""
    low = np.maximum(boxes[:, :, None, 0], others[:, None, :, 0])
    high = np.minimum(boxes[:, :, None, 1], others[:, None, :, 1])
    volumes = (boxes[:, :, 1] - boxes[:, :, 0]).prod(axis=-1)
    return (high - low).clip(0).prod(axis=-1) / volumes[:, :, None]


def _tile_size(extents: Int[np.ndarray, "b n"], grid: tuple[int, ...]) -> Int[np.ndarray, "b 1 n"]:
    assert not (extents % grid).any(), "check_tiles was not called for every extent"
    return (extents // grid)[:, None]
