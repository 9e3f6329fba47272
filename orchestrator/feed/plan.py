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

from data.interleaving import Visits
from data.labels import Labels
from data.shards.index import ShardSet
from data.shards.keep import Keep
from data.shards.mixture import Component, Mixture, MixtureReader
from data.shards.writer import ShardError
from orchestrator.config.sharing import Shares


@dataclass(frozen=True)
class SetPlan:
    """A shard set that feeds a run.

    shards, digest   where the shards are and what they must hold
    split, patients, keep   the selection, as ``ShardSet.select`` takes it
    weight           how many of its samples come for so many of the other sets'; None: by its number of samples
    """

    shards: str
    digest: str
    split: str | None = None
    patients: tuple[str, ...] | None = None
    keep: Keep | None = None
    weight: float | None = None

    def open(self, having: Labels | None) -> Component:
        """Open the shards, and select samples that have labels of a kind.

        Raises ShardError if they differ from the shards that the run began with.
        """
        shards = ShardSet.open(self.shards)
        if shards.digest != self.digest:
            raise ShardError(
                f"shards {self.shards}: digest {shards.digest[:12]}, the run began with {self.digest[:12]}; restore "
                "the shards, or start a new run on the new ones"
            )
        return Component(shards, shards.select(self.split, self.patients, having, self.keep), self.weight)


@dataclass(frozen=True)
class FeedPlan:
    """The samples that feed a run, and how they are cut; plain values, so that any process can rebuild the feed.

    sets                 what they are taken from
    seed                 of the order
    batch_size, world    global batch G and ranks W; W divides G
    first_step, last_step   the steps [first_step, last_step) remain
    having               the labels that the samples have, which are read too
    num_readers          reader processes; 0: each rank reads for itself
    reader_resource      a custom resource; each reader takes one
    block_bytes          approximate voxel bytes per block
    """

    sets: tuple[SetPlan, ...]
    seed: int
    batch_size: int
    last_step: int
    first_step: int = 0
    world: int = 1
    having: Labels | None = None
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
    mixture: Mixture

    @classmethod
    def open(cls, plan: FeedPlan) -> "OpenedPlan":
        """Open a plan's shards; raise ShardError if they differ from the shards that the run began with."""
        return cls(plan, Mixture([one.open(plan.having) for one in plan.sets]))

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
        """Mean raw bytes per sample."""
        return self.mixture.mean_bytes(self.plan.having)

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
        self._order = self._source.mixture.order(plan.seed)
        self._reader = MixtureReader(self._source.mixture, plan.having)

    def __call__(self, numbers: pa.Table) -> pa.Table:
        """Read the block whose number is the only value of a table, which is how Ray Data asks for a block."""
        return self.read(numbers["id"][0].as_py())

    def read(self, block: int) -> pa.Table:
        """Return a block's rows in order, with their ``number``, ``epoch`` and ``row`` (place in the mixture)."""
        numbers = self._source.numbers(block)
        visits = Visits.joined([self._order.visits(start, stop) for start, stop in _runs(numbers)])
        return self._reader.read(visits).append_column("number", pa.array(numbers))


def _runs(numbers: Int64[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Split rising numbers into stretches [start, stop) without gaps."""
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]
