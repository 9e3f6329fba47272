"""Integer boxes on the host: overlap, uniform crops, and exact pairs of crops whose IoU lies in an interval.

A box is (2, n): its low corner and its high corner (exclusive), in voxels, axes in the order of ``data/scan.py``.
Everything is batched over samples whose sizes may differ.

For two boxes of one size, the IoU depends only on the distance of their corners along each axis. So a table that is
independent of the sample can count the distances that meet the interval up to any limit per axis. A few look-ups, for
both directions along every axis, count the partners of a first box inside its sample, and an integer draw picks one,
axis by axis. The table never fails, but guessing is cheaper: draw a few second boxes, uniform over the region of
possible partners; the first that meets the interval is uniform over the partners too. The table serves the samples
whose guesses all miss. Counts and overlaps are exact integers, and the bounds of the interval mean the decimals that
were written: 0.3 is 3/10.

The second box, given the first, is distributed as in Algorithm 1 of the IoU-positives thesis (seed 001), uniform
over the partners of the first. The first is uniform over the positions that have a partner. Algorithm 1 gives up
on a first box after 30 failures, which favours first boxes with many partners a little, and on the pair after
four such rounds, which returns a pair outside the interval: 36 % of pairs for [0, 0] and 96-pixel crops of
200-pixel images, 0.4 % for [0.6, 1] at 450 pixels (methods.md 7b). Neither happens here.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import ceil, floor, prod

import numpy as np
from jaxtyping import Bool, Float, Int

from data.exact import exact
from data.views.rng import SampleRng, scale_words

GUESSES = 12
_ANY = np.iinfo(np.int64).max

# Indices (b,) into one axis of a table of cumulative counts, each with the sign that its count is added with.
_Lookups = list[tuple[np.ndarray, int]]


def boxes_at(low: Int[np.ndarray, "b n"], size: tuple[int, ...]) -> Int[np.ndarray, "b 2 n"]:
    """Return boxes of one size with the given low corners."""
    boxes = np.empty((len(low), 2, len(size)), dtype=np.int64)
    boxes[:, 0] = low
    np.add(low, size, out=boxes[:, 1])
    return boxes


def box_iou(first: Int[np.ndarray, "b 2 n"], second: Int[np.ndarray, "b 2 n"]) -> Float[np.ndarray, " b"]:
    """Compute intersection over union of each pair of boxes."""
    shared = np.minimum(first[:, 1], second[:, 1]) - np.maximum(first[:, 0], second[:, 0])
    intersection = shared.clip(0).prod(axis=1)
    volumes = (first[:, 1] - first[:, 0]).prod(axis=1) + (second[:, 1] - second[:, 0]).prod(axis=1)
    return intersection / (volumes - intersection)


def check_fits(size: tuple[int, ...], extent: tuple[int, ...], field: str = "method.crops.size") -> None:
    """Raise ValueError, naming the config's field, where a crop of this size does not fit into such samples."""
    if len(size) != len(extent):
        raise ValueError(
            f"crop size {size} has {len(size)} axes, samples of size {extent} have {len(extent)}; "
            f"give {field} one number, or one per spatial axis"
        )
    if any(c > s for c, s in zip(size, extent, strict=True)):
        raise ValueError(
            f"crop size {size} exceeds samples of size {extent}; lower {field}, "
            "or ingest with a recipe that pads or resamples to more voxels"
        )


def uniform_boxes(extents: Int[np.ndarray, "b n"], size: tuple[int, ...], rng: SampleRng) -> Int[np.ndarray, "b 2 n"]:
    """Draw one box per sample, uniform over all positions inside it; ``check_fits`` must hold."""
    return boxes_at(scale_words(rng.words(len(size)), _room(extents, size) + 1), size)


def _room(extents: Int[np.ndarray, "b n"], size: tuple[int, ...]) -> Int[np.ndarray, "b n"]:
    """Return how far a box can move along each axis."""
    room = extents - np.array(size)
    assert room.min() >= 0, "check_fits was not called for every extent"
    return room


@dataclass(frozen=True)
class BoxPairs:
    """Draws pairs of boxes of one size whose IoU lies in a closed interval; see the module's docstring.

    ``size`` has two or three axes. Raises ValueError where ``iou`` is not 0 <= low <= high <= 1.
    """

    size: tuple[int, ...]
    iou: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.iou
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"IoU interval [{low}, {high}]: expected 0 <= low <= high <= 1; correct method.crops.iou"
            )

    def check(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where no pair inside samples of this extent meets the interval."""
        check_fits(self.size, extent)
        room = np.array([extent]) - self.size
        if not _can_pair(_table(self.size, self.iou), self.size, room)[0]:
            closest = " and ".join(f"{iou:.4g}" for iou in self._closest_reachable(extent))
            raise ValueError(
                f"IoU interval [{self.iou[0]:g}, {self.iou[1]:g}]: no two crops of size {self.size} inside samples "
                f"of size {extent} meet it; the closest possible is {closest}; "
                "widen method.crops.iou, or change method.crops.size"
            )

    def draw(
        self, extents: Int[np.ndarray, "b n"], rng: SampleRng
    ) -> tuple[Int[np.ndarray, "b 2 n"], Int[np.ndarray, "b 2 n"]]:
        """Draw a pair per sample of the given spatial size; raises as ``check`` does where there is none.

        The first box is uniform over the positions that have a partner, the second over the first one's partners.
        """
        if self.iou[0] == 0 and self.iou[1] == 1:
            first = uniform_boxes(extents, self.size, rng.fold("first box"))
            return first, uniform_boxes(extents, self.size, rng.fold("second box"))
        words = rng.fold("pair").words(1 + GUESSES, len(self.size))
        room = _room(extents, self.size)
        low = scale_words(words[:, 0], room + 1)
        # The box in the middle reaches least far: if it has a partner, every box has one.
        hard = ~_can_pair(_table(self.size, self.iou), self.size, (room + 1) // 2)
        if hard.any():
            low[hard] = self._draw_hard(room[hard], rng.fold("hard").take(hard))
        moves, hit = self._guess_moves(low, room, words[:, 1:])
        if not hit.all():
            moves[~hit] = self._count_moves(low[~hit], room[~hit], rng.fold("counted").take(~hit))
        return boxes_at(low, self.size), boxes_at(low + moves, self.size)

    def _draw_hard(self, room: Int[np.ndarray, "b n"], rng: SampleRng) -> Int[np.ndarray, "b n"]:
        """Draw first boxes where not all positions have a partner, uniform over the positions that have one."""
        units = rng.uniform().tolist()
        return np.array([self._nth_first(tuple(r), u) for r, u in zip(room.tolist(), units, strict=True)])

    def _nth_first(self, room: tuple[int, ...], unit: float) -> tuple[int, ...]:
        """Return the low corner at a fraction of the list of positions that have a partner, if not all do."""
        cumulative, needed = _first_positions(self.size, self.iou, room)
        if cumulative[-1] == 0:
            self.check(tuple(r + c for r, c in zip(room, self.size, strict=True)))
        index = min(int(unit * cumulative[-1]), int(cumulative[-1]) - 1)
        row = int(cumulative.searchsorted(index, side="right"))
        last = index - int(cumulative[row - 1]) if row else index
        lead = np.unravel_index(row, needed.shape)
        # Positions near either end reach far enough; those in the middle that do not are skipped.
        reach = int(needed[lead])
        if last > room[-1] - reach:
            last += max(0, 2 * reach - room[-1] - 1)
        return (*(int(k) for k in lead), last)

    def _guess_moves(
        self, low: Int[np.ndarray, "b n"], room: Int[np.ndarray, "b n"], words: np.ndarray
    ) -> tuple[Int[np.ndarray, "b n"], Bool[np.ndarray, " b"]]:
        """Guess the move from each first box to its partner; return the first move that fits, and whether one fits.

        ``words`` is (b, guesses, n). Every array below has the samples last, which is how ``words`` lies in memory.
        """
        table, low, room, words = _table(self.size, self.iou), low.T, room.T, words.transpose(1, 2, 0)
        size, reach = np.array(self.size)[:, None], table.reach[:, None]
        least = -np.minimum(low, reach)
        moves = scale_words(words, np.minimum(room - low, reach) - least + 1)
        moves += least
        sides = np.maximum(size - np.abs(moves), 0)
        shared = sides[:, 0] * sides[:, 1] if len(size) == 2 else sides.prod(axis=1)
        hits = (shared >= table.shared[0]) & (shared <= table.shared[1])
        chosen, samples = hits.argmax(axis=0), np.arange(hits.shape[1])
        return moves[chosen, :, samples], hits[chosen, samples]

    def _count_moves(
        self, low: Int[np.ndarray, "b n"], room: Int[np.ndarray, "b n"], rng: SampleRng
    ) -> Int[np.ndarray, "b n"]:
        """Draw the move from each first box to its partner, axis by axis, by counting the partners."""
        table, moves, rank = _table(self.size, self.iou), np.empty_like(low), None
        up = room - low
        lookups = [_both_directions(low[:, k], up[:, k], c) for k, c in enumerate(self.size)]
        for axis in reversed(range(len(self.size))):
            counts = _count_by_distance(table, axis, lookups, (room[:, :axis] + 1).prod(axis=1))
            num_up = counts.nearer_than(up[:, axis] + 1)
            num_still = counts.cumulative[:, 1]
            if rank is None:
                rank = rng.integers(num_up - num_still + counts.nearer_than(low[:, axis] + 1))
            downward = rank >= num_up
            distance, rank = counts.find(rank - downward * (num_up - num_still))
            moves[:, axis] = np.where(downward, -distance, distance)
            lookups[axis] = _one_distance(distance, self.size[axis])
        return moves

    def _closest_reachable(self, extent: tuple[int, ...]) -> list[float]:
        """Return the greatest reachable IoU below the interval and the least above it, if there are any."""
        overlap = np.ones(1, dtype=np.int64)
        for c, s in zip(self.size, extent, strict=True):
            overlap = np.unique(overlap[:, None] * (c - np.arange(min(s - c, c) + 1)))
        iou = overlap / (2 * prod(self.size) - overlap)
        low, high = _overlap_bounds(self.size, self.iou)
        return [float(side) for side in (*iou[overlap < low][-1:], *iou[overlap > high][:1])]


@dataclass(frozen=True)
class _DistanceTable:
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


def _overlap_bounds(size: tuple[int, ...], iou: tuple[float, float]) -> tuple[int, int]:
    """Return the least and the greatest number of shared voxels: IoU = shared / (2 volume - shared)."""
    low, high = (exact(bound) for bound in iou)
    twice = 2 * prod(size)
    return ceil(twice * low / (1 + low)), floor(twice * high / (1 + high))


@lru_cache(maxsize=64)
def _table(size: tuple[int, ...], iou: tuple[float, float]) -> _DistanceTable:
    """Count the distances that meet the interval."""
    low, high = _overlap_bounds(size, iou)
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
    return _DistanceTable(counts, low == 0, needed, (low, high), reach)


def _can_pair(table: _DistanceTable, size: tuple[int, ...], reach: Int[np.ndarray, "b n"]) -> Bool[np.ndarray, " b"]:
    """Tell whether a box that can move by up to ``reach`` along each axis has a partner."""
    lead = tuple(np.minimum(reach[:, k], c) for k, c in enumerate(size[:-1]))
    return table.needed[lead] <= reach[:, -1]


@lru_cache(maxsize=1024)
def _first_positions(
    size: tuple[int, ...], iou: tuple[float, float], room: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Count, for each position along the leading axes, the positions along the last axis that have a partner.

    Returns the cumulative counts (flat) and, per leading position, how far the last axis must reach.
    """
    reaches = [np.maximum(np.arange(r + 1), r - np.arange(r + 1)) for r in room[:-1]]
    needed = _table(size, iou).needed[np.ix_(*(np.minimum(m, c) for m, c in zip(reaches, size, strict=False)))]
    needed = np.minimum(needed, room[-1] + 1)
    return np.cumsum(np.minimum(2 * (room[-1] + 1 - needed), room[-1] + 1)), needed


def _both_directions(down: np.ndarray, up: np.ndarray, c: int) -> _Lookups:
    """Return the look-ups that count both directions along an axis; standing still belongs to both."""
    return [(np.minimum(up + 1, c), 1), (np.minimum(down + 1, c), 1), (np.ones_like(up), -1)]


def _one_distance(distance: np.ndarray, c: int) -> _Lookups:
    """Return the look-ups that count a single distance in one direction."""
    return [(np.minimum(distance + 1, c), 1), (np.minimum(distance, c), -1)]


@dataclass(frozen=True)
class _CountsByDistance:
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


def _count_by_distance(
    table: _DistanceTable, axis: int, lookups: list[_Lookups], others: Int[np.ndarray, " b"]
) -> _CountsByDistance:
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
        return _CountsByDistance(marked, None)
    return _CountsByDistance(others[:, None] * np.arange(marked.shape[1]) - marked, others)
