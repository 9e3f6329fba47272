"""Distance tables: how many partners a box has inside its sample, counted by a few look-ups.

For two boxes of one size, the IoU depends only on the distance of their corners along each axis, whatever the sample.
So one table per size and interval marks the distances that meet the interval and holds, for every distance, how many
marked ones are less along every axis.

Example: for boxes of 2 x 2 pixels, the interval [0.3, 1] needs 2 of 4 shared pixels (IoU 1/3), so that the distances
(0, 0), (0, 1) and (1, 0) meet it:

>>> table = distance_table((2, 2), (0.3, 1.0))
>>> table.shared
(2, 4)
>>> table.nearer[1]
array([[0, 0, 0],
       [0, 1, 2],
       [0, 2, 3]], dtype=int32)

The box in the middle of 4 x 4 pixels can move by one either way along both axes. Its partners along an axis are those
upward and those downward, less those that stand still and belong to both; so they are counted by 3 x 3 look-ups. It
has five: itself, and the boxes one pixel above, below, left and right. One of them lies one pixel up:

>>> one = np.array([1])
>>> both = both_directions(one, one, 2)
>>> lookups = [both, both]
>>> sum(s * t * int(table.nearer[1][i[0], j[0]]) for i, s in both for j, t in both)
5
>>> upward = count_by_distance(table, 0, lookups, others=np.array([1]))  # up along H, anywhere along W
>>> upward.cumulative  # nearer than 0, 1, 2: W has three places without a move along H, and one with it
array([[0, 3, 4]], dtype=int32)
>>> upward.find(np.array([3]))  # the partner of rank 3 lies at distance 1 and is the first one there
(array([1]), array([0]))

Where the interval starts at 0, nearly every distance meets it, and the table marks those that do not.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import ceil, floor, prod

import numpy as np
from jaxtyping import Bool, Int

from data.exact import exact

_ANY = np.iinfo(np.int64).max

# Indices (b,) into one axis of a table of cumulative counts, each with the sign that its count is added with.
Lookups = list[tuple[np.ndarray, int]]


@dataclass(frozen=True)
class DistanceTable:
    """Counts of the distances that meet an interval.

    nearer      per axis: (c_0 + 1, ..., c_{n-1} + 1) with that axis last; [i, j, ...] counts the marked distances
                that are less than i, j, ...
    too_close   False: marked are the distances that meet the interval, all less than the size along every axis.
                True: the interval starts at 0, and marked are the distances that do not meet it.
    needed      (c_0 + 1, ..., c_{n-2} + 1): how far the last axis must reach when the others reach up to here
    shared      the least and the greatest number of shared voxels that meet the interval
    reach       (n,): per axis, the greatest distance that can meet the interval
    """

    nearer: list[np.ndarray]
    too_close: bool
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
    """Count the distances that meet the interval."""
    low, high = overlap_bounds(size, iou)
    shared = np.ones((), dtype=np.int64)
    for c in size:
        shared = shared[..., None] * (c - np.arange(c + 1))
    meets = (low <= shared) & (shared <= high)
    marked = (shared > high) if low == 0 else meets
    # Half the memory traffic, as long as the counts over both directions of every axis fit.
    dtype = np.int32 if 2 ** len(size) * prod(size) < 2**31 else np.int64
    nearer = np.pad(marked[(slice(-1),) * len(size)], [(1, 0)] * len(size)).astype(dtype)
    needed = np.where(meets.any(axis=-1), meets.argmax(axis=-1), np.iinfo(np.int64).max)
    for axis in range(len(size)):
        np.cumsum(nearer, axis=axis, out=nearer)
    for axis in range(len(size) - 1):
        np.minimum.accumulate(needed, axis=axis, out=needed)
    # At a distance d along one axis, at most c - d of its c voxels are shared.
    reach = np.array([c - ceil(Fraction(low * c, prod(size))) if low > 0 else _ANY for c in size])
    counts = [np.moveaxis(nearer, axis, -1) for axis in range(len(size))]
    return DistanceTable(counts, low == 0, needed, (low, high), reach)


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


def both_directions(down: np.ndarray, up: np.ndarray, c: int) -> Lookups:
    """Return the look-ups that count both directions along an axis; standing still belongs to both."""
    return [(np.minimum(up + 1, c), 1), (np.minimum(down + 1, c), 1), (np.ones_like(up), -1)]


def one_distance(distance: np.ndarray, c: int) -> Lookups:
    """Return the look-ups that count a single distance in one direction."""
    return [(np.minimum(distance + 1, c), 1), (np.minimum(distance, c), -1)]


@dataclass(frozen=True)
class CountsByDistance:
    """Counts of the partners nearer than each distance along one axis, in one direction.

    cumulative     (b, c + 1): nearer than 0, 1, ..., c
    per_distance   (b,): number of partners at each distance from c on; None for none
    """

    cumulative: np.ndarray
    per_distance: np.ndarray | None

    def nearer_than(self, distance: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Count the partners nearer than a distance."""
        c = self.cumulative.shape[1] - 1
        within = self.cumulative[np.arange(len(distance)), np.minimum(distance, c)]
        return within if self.per_distance is None else within + np.maximum(distance - c, 0) * self.per_distance

    def find(self, rank: Int[np.ndarray, " b"]) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
        """Return the distance of the partner of this rank, and its rank among the partners at that distance."""
        distance = (self.cumulative[:, 1:] > rank[:, None]).argmax(axis=1)
        if self.per_distance is not None:
            c, further = self.cumulative.shape[1] - 1, rank - self.cumulative[:, -1]
            distance = np.where(further >= 0, c + further // self.per_distance, distance)
        return distance, rank - self.nearer_than(distance)


def count_by_distance(
    table: DistanceTable, axis: int, lookups: list[Lookups], others: Int[np.ndarray, " b"]
) -> CountsByDistance:
    """Count partners by distance along an axis; the other axes are counted by their look-ups.

    Where the table marks too close distances, the partners at a distance are all ``others`` positions along the axes
    that are not drawn yet, less the marked ones.
    """
    nearer = table.nearer[axis]
    marked = np.zeros((len(others), nearer.shape[-1]), dtype=nearer.dtype)
    for combination in product(*lookups[:axis], *lookups[axis + 1 :]):
        add = np.add if prod(sign for _, sign in combination) > 0 else np.subtract
        add(marked, nearer[tuple(index for index, _ in combination)], out=marked)
    if not table.too_close:
        return CountsByDistance(marked, None)
    return CountsByDistance(others[:, None] * np.arange(marked.shape[1]) - marked, others)
