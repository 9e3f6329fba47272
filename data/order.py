"""Order: the sample visited at each number, a pure function of seed and number, so that a run can start anywhere.

Global sample number g belongs to epoch g // N, N samples being selected. An epoch permutes the row groups and the
rows inside each group, and keeps a group's rows together: consecutive numbers are whole row groups from anywhere in
the shards, so no group is read twice. Nothing depends on the batch, the number of ranks or where a run was resumed.

Groups of the largest size s lie on multiples of s in global numbers, so a step whose batch is a multiple of s reads
whole groups in every epoch. Where N is not a multiple of s, one group per epoch is cut to keep it so, and the groups
that hold fewer samples than s (the last of a file, or those thinned by a label fraction) end the epoch:

    epoch e    |cut|  full group  |  full group  | ... |  full group  |rest of cut|short|short|
    epoch e+1                                                                          |cut|  full group  | ...
               multiples of s ----^--------------^--------------------^                     ^--------------^

Where short groups hold most samples there is little to align, and all groups are permuted alike.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64, Integer, UInt64

ORDER_VERSION = 1
"""Raised with every change of the sequence; a checkpoint written under another version cannot be resumed exactly."""

_CACHED_EPOCHS = 2


class Order:
    """The visiting order of a selection whose row groups hold ``group_sizes`` selected rows, in selection order."""

    def __init__(self, group_sizes: Sequence[int] | Integer[np.ndarray, " n"], seed: int) -> None:
        sizes = np.asarray(group_sizes, dtype=np.int64)
        if sizes.size == 0 or sizes.min() < 0 or sizes.sum() == 0:
            raise ValueError(
                f"order: {sizes.size} row groups with {sizes.sum()} selected samples; expected at least one sample: "
                "name another split, or shards that hold samples of this one"
            )
        self.seed = seed
        self.num_samples = int(sizes.sum())
        largest = sizes.max()
        self._full = sizes == largest
        if 2 * sizes[self._full].sum() < self.num_samples:
            self._full = np.zeros_like(self._full)
            largest = np.int64(1)
        self.group_size = int(largest)
        self._group_of = np.repeat(np.arange(len(sizes)), sizes)
        self._epoch = lru_cache(maxsize=_CACHED_EPOCHS)(self._permute)

    def epochs(self, start: int, stop: int) -> Int64[np.ndarray, "{stop-start}"]:
        """Return the epoch of each global sample number in [start, stop)."""
        _check_range(start, stop)
        return np.arange(start, stop, dtype=np.int64) // self.num_samples

    def positions(self, start: int, stop: int) -> Int64[np.ndarray, "{stop-start}"]:
        """Return the position in the selection of each number in [start, stop)."""
        _check_range(start, stop)
        n = self.num_samples
        pieces = [
            self._epoch(epoch)[max(start - epoch * n, 0) : stop - epoch * n]
            for epoch in range(start // n, -(-stop // n))
        ]
        return np.concatenate([np.empty(0, np.int64), *pieces])

    def _permute(self, epoch: int) -> Int64[np.ndarray, "{self.num_samples}"]:
        """Return the epoch's permutation of positions."""
        keys = _words(self.seed, epoch, len(self._full) + self.num_samples)
        group_keys, row_keys = np.split(keys, [len(self._full)])
        groups = np.argsort(group_keys, kind="stable")
        groups = np.concatenate([groups[self._full[groups]], groups[~self._full[groups]]])
        place = np.empty_like(groups)
        place[groups] = np.arange(len(groups))
        rows = np.lexsort((row_keys, place[self._group_of]))
        cut = -epoch * self.num_samples % self.group_size
        if cut == 0:
            return rows
        # The first group is the cut one: its first rows complete what the previous epoch left open, the rest waits.
        size, end = self.group_size, self.group_size * int(self._full.sum())
        return np.concatenate([rows[:cut], rows[size:end], rows[cut:size], rows[end:]])


def _words(seed: int, epoch: int, count: int) -> UInt64[np.ndarray, "{count}"]:
    """Return random words of an epoch. numpy keeps a bit generator's raw words the same for ever."""
    return np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(count)


def _check_range(start: int, stop: int) -> None:
    if not 0 <= start <= stop:
        raise ValueError(f"order: numbers [{start}, {stop}) are not a range; expected 0 <= start <= stop")
