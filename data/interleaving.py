"""Interleaving: several orders as one, each with its share of any stretch; pure, so that a run can start anywhere.

Sample m of set k, whose share of all samples is p_k, is due at (m + 1/2) / p_k. Global numbers count the samples as
they are due, and where several are due at once, those of earlier sets come first. So any stretch of n numbers holds
p_k n samples of set k, give or take as many as there are sets. A set's samples follow its own order, epoch after
epoch; where shares are as the sets' sizes, every sample of all sets is visited once before any is visited again.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from math import lcm

import numpy as np
from jaxtyping import Int64

from data.order import Order


@dataclass(frozen=True)
class Visits:
    """Samples in the order of their visits: the set of each, its position in that set's selection, and epoch."""

    sets: Int64[np.ndarray, " n"]
    positions: Int64[np.ndarray, " n"]
    epochs: Int64[np.ndarray, " n"]

    @classmethod
    def joined(cls, parts: Sequence["Visits"]) -> "Visits":
        """Join visits, one part after the other."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


class Interleaving:
    """The visiting order of several sets; ``shares`` says how many samples of each come among those of the others."""

    def __init__(self, orders: Sequence[Order], shares: Sequence[Fraction]) -> None:
        self._orders = tuple(orders)
        whole = lcm(*(share.denominator for share in shares))
        self._shares = [int(share * whole) for share in shares]

    def visits(self, start: int, stop: int) -> Visits:
        """Return the samples with the global numbers [start, stop)."""
        ranges = [(self._visited(place, start), self._visited(place, stop)) for place in range(len(self._orders))]
        sets = np.repeat(np.arange(len(ranges)), [last - first for first, last in ranges])
        numbers = [self._number(place, m) for place, span in enumerate(ranges) for m in range(*span)]
        parts = [
            (order.positions(*span), order.epochs(*span)) for order, span in zip(self._orders, ranges, strict=True)
        ]
        positions, epochs = (np.concatenate(values) for values in zip(*parts, strict=True))
        by_number = np.argsort(np.array(numbers, np.int64))
        return Visits(sets[by_number], positions[by_number], epochs[by_number])

    def _visited(self, place: int, number: int) -> int:
        """Return how many samples of a set have smaller global numbers."""
        return bisect_left(range(number), number, key=lambda m: self._number(place, m))

    def _number(self, place: int, m: int) -> int:
        """Return the global number of a set's sample m, in whole numbers of any size."""
        own, total = self._shares[place], m
        for other, share in enumerate(self._shares):
            if other == place:
                continue
            # Sample i of the other set is due before: (2i + 1) / share < (2m + 1) / own, or at once and first.
            due = (2 * m + 1) * share - (other > place)
            total += (due // own + 1) // 2
        return total
