"""Distance table: which distances of the corners of two boxes of one size meet an interval of IoU.

For two boxes of one size, the IoU depends only on the distance of their corners along each axis, whatever the sample.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor, prod

import numpy as np
from jaxtyping import Bool, Int

from data.exact import exact

_ANY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class DistanceTable:
    """The distances that meet an interval; a distance of the size along an axis stands for all from there on.

    distances   (m, n): the m distances, from (0, ..., 0) to ``size``
    needed      (c_0 + 1, ..., c_{n-2} + 1): how far the last axis must reach when the others reach up to here
    shared      the least and the greatest number of shared voxels that meet the interval
    reach       (n,): per axis, the greatest distance that can meet the interval
    """

    distances: np.ndarray
    needed: np.ndarray
    shared: tuple[int, int]
    reach: np.ndarray


def overlap_bounds(size: tuple[int, ...], iou: tuple[float, float]) -> tuple[int, int]:
    """Return the least and the greatest number of shared voxels: IoU = shared / (2 volume - shared)."""
    low, high = (exact(bound) for bound in iou)
    twice = 2 * prod(size)
    return ceil(twice * low / (1 + low)), floor(twice * high / (1 + high))


@lru_cache(maxsize=64)
def distance_table(size: tuple[int, ...], iou: tuple[float, float]) -> DistanceTable:
    """Find the distances that meet the interval."""
    low, high = overlap_bounds(size, iou)
    shared = np.ones((), dtype=np.int64)
    for c in size:
        shared = shared[..., None] * (c - np.arange(c + 1))
    meets = (low <= shared) & (shared <= high)
    needed = np.where(meets.any(axis=-1), meets.argmax(axis=-1), _ANY)
    for axis in range(len(size) - 1):
        np.minimum.accumulate(needed, axis=axis, out=needed)
    # At a distance d along one axis, at most c - d of its c voxels are shared.
    reach = np.array([c - ceil(Fraction(low * c, prod(size))) if low > 0 else _ANY for c in size])
    return DistanceTable(np.argwhere(meets), needed, (low, high), reach)


def can_pair(table: DistanceTable, size: tuple[int, ...], reach: Int[np.ndarray, "b n"]) -> Bool[np.ndarray, " b"]:
    """Tell whether a box that can move by up to ``reach`` along each axis has a partner."""
    lead = tuple(np.minimum(reach[:, k], c) for k, c in enumerate(size[:-1]))
    return table.needed[lead] <= reach[:, -1]


@lru_cache(maxsize=1024)
def first_positions(
    size: tuple[int, ...], iou: tuple[float, float], room: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Count, for each position along the leading axes, the positions along the last axis that have a partner.

    Returns the cumulative counts (flat) and, per leading position, how far the last axis must reach.
    """
    reaches = [np.maximum(np.arange(r + 1), r - np.arange(r + 1)) for r in room[:-1]]
    capped = [np.minimum(reach, c) for reach, c in zip(reaches, size, strict=False)]
    needed = np.minimum(distance_table(size, iou).needed[np.ix_(*capped)], room[-1] + 1)
    return np.cumsum(np.minimum(2 * (room[-1] + 1 - needed), room[-1] + 1)), needed


def steps(room: int, c: int) -> Int[np.ndarray, " d"]:
    """Count the positions at each distance in one direction, where there are ``room``: those from ``c`` on as one."""
    distance = np.arange(c + 1)
    return np.where(distance < c, distance <= room, max(0, room + 1 - c)).astype(np.int64)
