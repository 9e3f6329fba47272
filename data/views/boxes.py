"""Integer boxes on the host: overlap, uniform crops, and exact pairs of crops whose IoU lies in an interval.

A box is (2, n): its low corner and its high corner (exclusive), in voxels, axes in the order of ``data/scan.py``.
Everything is batched over samples whose sizes may differ.

The second box is guessed a few times, uniform over the region of possible partners of the first; the first guess
that meets the interval is uniform over the partners too. Where all guesses miss, all partners are enumerated and one
is picked. Counts and overlaps are exact integers, and the bounds of the interval mean the decimals that were
written: 0.3 is 3/10.

The second box, given the first, is distributed as in Algorithm 1 of the IoU-positives thesis (seed 001), uniform
over the partners of the first. The first is uniform over the positions that have a partner. Algorithm 1 gives up
on a first box after 30 failures, which favours first boxes with many partners a little, and on the pair after
four such rounds, which returns a pair outside the interval: 36 % of pairs for [0, 0] and 96-pixel crops of
200-pixel images, 0.4 % for [0.6, 1] at 450 pixels (methods.md 7b). Neither happens here.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Bool, Float, Int

from data.views.distance_table import can_pair, distance_table, first_positions, overlap_bounds, steps
from data.views.rng import SampleRng, scale_words

GUESSES = 12


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
        if not can_pair(distance_table(self.size, self.iou), self.size, room)[0]:
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
        hard = ~can_pair(distance_table(self.size, self.iou), self.size, (room + 1) // 2)
        if hard.any():
            low[hard] = self._draw_hard(room[hard], rng.fold("hard").take(hard))
        moves, hit = self._guess_moves(low, room, words[:, 1:])
        if not hit.all():
            units = rng.fold("counted").take(~hit).uniform().tolist()
            missed = zip(low[~hit].tolist(), room[~hit].tolist(), units, strict=True)
            moves[~hit] = [self._enumerated_move(*one) for one in missed]
        return boxes_at(low, self.size), boxes_at(low + moves, self.size)

    def _draw_hard(self, room: Int[np.ndarray, "b n"], rng: SampleRng) -> Int[np.ndarray, "b n"]:
        """Draw first boxes where not all positions have a partner, uniform over the positions that have one."""
        units = rng.uniform().tolist()
        return np.array([self._nth_first(tuple(r), u) for r, u in zip(room.tolist(), units, strict=True)])

    def _nth_first(self, room: tuple[int, ...], unit: float) -> tuple[int, ...]:
        """Return the low corner at a fraction of the list of positions that have a partner, if not all do."""
        cumulative, needed = first_positions(self.size, self.iou, room)
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
        table, low, room, words = distance_table(self.size, self.iou), low.T, room.T, words.transpose(1, 2, 0)
        size, reach = np.array(self.size)[:, None], table.reach[:, None]
        least = -np.minimum(low, reach)
        moves = scale_words(words, np.minimum(room - low, reach) - least + 1)
        moves += least
        sides = np.maximum(size - np.abs(moves), 0)
        shared = sides[:, 0] * sides[:, 1] if len(size) == 2 else sides.prod(axis=1)
        hits = (shared >= table.shared[0]) & (shared <= table.shared[1])
        chosen, samples = hits.argmax(axis=0), np.arange(hits.shape[1])
        return moves[chosen, :, samples], hits[chosen, samples]

    def _enumerated_move(self, low: list[int], room: list[int], unit: float) -> list[int]:
        """Return the move at a fraction of the list of all moves from a first box to its partners."""
        table = distance_table(self.size, self.iou)
        ways = []
        for position, space, c, distance in zip(low, room, self.size, table.distances.T, strict=True):
            up, down = steps(space - position, c), steps(position, c)
            down[0] = 0  # standing still is one move
            ways.append((up[distance], down[distance]))
        cumulative = np.cumsum(np.prod([up + down for up, down in ways], axis=0))
        index = min(int(unit * cumulative[-1]), int(cumulative[-1]) - 1)
        place = int(cumulative.searchsorted(index, side="right"))
        rest = index - int(cumulative[place - 1]) if place else index
        moves = []
        for distance, (up, down) in zip(table.distances[place].tolist(), ways, strict=True):
            rest, way = divmod(rest, int(up[place] + down[place]))
            moves.append(distance + way if way < up[place] else int(up[place]) - distance - way)
        return moves

    def _closest_reachable(self, extent: tuple[int, ...]) -> list[float]:
        """Return the greatest reachable IoU below the interval and the least above it, if there are any."""
        overlap = np.ones(1, dtype=np.int64)
        for c, s in zip(self.size, extent, strict=True):
            overlap = np.unique(overlap[:, None] * (c - np.arange(min(s - c, c) + 1)))
        iou = overlap / (2 * prod(self.size) - overlap)
        low, high = overlap_bounds(self.size, self.iou)
        return [float(side) for side in (*iou[overlap < low][-1:], *iou[overlap > high][:1])]
