"""Blocks: cut a run's samples into pieces for Ray Data, and read one piece.

Step s of a run takes the global sample numbers [s G, (s + 1) G), whatever the number W of ranks; rank r takes the
r-th part of them. A rank's samples, step after step, are its stream. A block is a stretch of one stream: block b
belongs to rank b mod W. A block holds about ``block_bytes`` (many small steps, or a part of one large step), because
each block costs Ray some milliseconds. All blocks of a round (one per rank) are equally large; those of the last
round are smaller.

This file imports neither torch nor Ray, so that reader processes start faster.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from data.labels import Labels
from data.order import Order
from data.shards.index import Selection, ShardSet
from data.shards.keep import Keep
from data.shards.reader import ShardReader
from data.shards.writer import ShardError
from orchestrator.config.sharing import Shares


@dataclass(frozen=True)
class FeedPlan:
    """The samples that feed a run, and how they are cut; plain values, so that any process can rebuild the feed.

    shards, digest       where the shards are and what they must hold
    seed                 of the order
    batch_size, world    global batch G and ranks W; W divides G
    first_step, last_step   the steps [first_step, last_step) remain
    split, patients, having, keep   the selection, as ``ShardSet.select`` takes it; the labels that it has are read
    num_readers          reader processes
    reader_resource      a custom resource; each reader takes one
    block_bytes          approximate voxel bytes per block
    """

    shards: str
    digest: str
    seed: int
    batch_size: int
    last_step: int
    first_step: int = 0
    world: int = 1
    split: str | None = None
    patients: tuple[str, ...] | None = None
    having: Labels | None = None
    keep: Keep | None = None
    num_readers: int = 1
    reader_resource: str | None = None
    block_bytes: int = 128 * 2**20

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            most = Shares(self.batch_size, self.world).workers
            raise ValueError(
                f"feed: a batch of {self.batch_size} samples cannot be shared out evenly over {self.world} workers; "
                f"set budget.batch_size to a multiple of {self.world}, or take {most} workers"
            )
        if not 0 <= self.first_step <= self.last_step:
            raise ValueError(
                f"feed: steps [{self.first_step}, {self.last_step}); expected 0 <= first_step <= last_step"
            )

    @property
    def samples_per_step(self) -> int:
        """Samples of one rank in one step."""
        return self.batch_size // self.world

    @property
    def samples_per_rank(self) -> int:
        """Length of a rank's stream."""
        return (self.last_step - self.first_step) * self.samples_per_step

    def numbers(self, rank: int, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """Return the global sample numbers at [start, stop) of a rank's stream."""
        step, place = np.divmod(np.arange(start, stop, dtype=np.int64), self.samples_per_step)
        return (self.first_step + step) * self.batch_size + rank * self.samples_per_step + place


@dataclass(frozen=True)
class OpenedPlan:
    """A plan with its shards opened."""

    plan: FeedPlan
    shards: ShardSet
    selection: Selection

    @classmethod
    def open(cls, plan: FeedPlan) -> "OpenedPlan":
        """Open a plan's shards; raise ShardError if they differ from the shards that the run began with."""
        shards = ShardSet.open(plan.shards)
        if shards.digest != plan.digest:
            raise ShardError(
                f"shards {plan.shards}: digest {shards.digest[:12]}, the run began with {plan.digest[:12]}; restore "
                "the shards, or start a new run on the new ones"
            )
        return cls(plan, shards, shards.select(plan.split, plan.patients, plan.having, plan.keep))

    @cached_property
    def block_size(self) -> int:
        """Samples per block: whole steps if a step is smaller than a block, else an equal part of a step."""
        per_step = self.plan.samples_per_step
        fitting = max(1, int(self.plan.block_bytes / self.bytes_per_sample))
        if fitting >= per_step:
            return fitting // per_step * per_step
        return -(-per_step // -(-per_step // fitting))

    @cached_property
    def bytes_per_sample(self) -> float:
        """Mean raw bytes per selected sample: its voxels, and its labels if they are read."""
        voxel_bytes = self.shards.voxel_bytes[self.selection.row_ids]
        label_bytes = self.plan.having.bytes_per_voxel if self.plan.having else 0
        return float((voxel_bytes + label_bytes * self.selection.extents.prod(axis=1)).mean())

    @property
    def num_blocks(self) -> int:
        """Number of blocks of all ranks together."""
        return -(-self.plan.samples_per_rank // self.block_size) * self.plan.world

    def numbers(self, block: int) -> Int64[np.ndarray, " n"]:
        """Return the global sample numbers of a block."""
        round_, rank = divmod(block, self.plan.world)
        start = round_ * self.block_size
        return self.plan.numbers(rank, start, min(start + self.block_size, self.plan.samples_per_rank))


class BlockReader:
    """Reads blocks by number, in one thread; shards stay open between blocks."""

    def __init__(self, plan: FeedPlan) -> None:
        self._source = OpenedPlan.open(plan)
        self._order = Order(self._source.selection.group_sizes, plan.seed)
        self._reader = ShardReader(self._source.shards, plan.having)

    def __call__(self, numbers: pa.Table) -> pa.Table:
        """Read the block whose number is the only value of a table, which is how Ray Data asks for a block."""
        return self.read(numbers["id"][0].as_py())

    def read(self, block: int) -> pa.Table:
        """Return a block's rows in order, with their ``number``, ``epoch`` and ``row`` (place in the selection)."""
        numbers = self._source.numbers(block)
        positions = np.concatenate([self._order.positions(start, stop) for start, stop in _runs(numbers)])
        table = self._reader.read(self._source.selection.row_ids[positions])
        visited = {"number": numbers, "epoch": numbers // self._order.num_samples, "row": positions}
        for name, values in visited.items():
            table = table.append_column(name, pa.array(values))
        return table


def _runs(numbers: Int64[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Split rising numbers into stretches [start, stop) without gaps."""
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]
