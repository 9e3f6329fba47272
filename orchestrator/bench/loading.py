"""Loading: raw Parquet, a torch DataLoader and the feed over the same shards in the same order, interleaved.

The DataLoader is no straw man: it uses the project's own reader, order and collation, and whole batches per worker,
with no worker and with two; the faster of the two counts. A batch counts once each of its pages has been touched, as
in training: a DataLoader's worker hands over shared memory that is not mapped yet.
"""

import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.shards.index import ShardSet
from data.shards.writer import open_shard
from data.views.batch import Batch
from data.views.collate import collate
from orchestrator.feed import stream as feed
from orchestrator.feed.plan import BlockReader, FeedPlan, OpenedPlan, SetPlan

ROUNDS = 5
# Timed from the first to the second of these shares of the steps. At the first, files are open, buffers are as full
# as they get, and readers have used every page of the object store that they will use (a page's first use costs a
# page fault). After the second, much was read earlier, which would flatter whatever reads furthest ahead.
TIMED_FROM, TIMED_TO = 0.5, 0.85
LOADER_WORKERS = 2
LOADER_PREFETCH = 4
READERS = 2


@dataclass(frozen=True)
class Speed:
    """Raw megabytes and samples per second that a consumer received, and its wait for the first batch."""

    mb_per_s: float
    samples_per_s: float
    first_batch_s: float


class StepDataset(IterableDataset[Batch]):
    """The steps of a one-rank plan, each as a batch; workers take the steps in turn."""

    def __init__(self, plan: FeedPlan) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        first, every = (info.id, info.num_workers) if info else (0, 1)
        reader = BlockReader(self.plan)
        for step in range(first, self.plan.last_step, every):
            yield collate(reader.read(step))


def compare(uri: str, batch_size: int, num_steps: int) -> dict[str, Any]:
    """Return the median speeds of each way of loading, and the feed's ratio to the better DataLoader."""
    shards = ShardSet.open(uri)
    plan = FeedPlan(
        (SetPlan(uri, shards.digest),), seed=0, batch_size=batch_size, last_step=num_steps, num_readers=READERS
    )
    ways: dict[str, Callable[[], Iterator[Batch]]] = {
        "DataLoader, 0 workers": partial(dataloader, plan, 0),
        f"DataLoader, {LOADER_WORKERS} workers": partial(dataloader, plan, LOADER_WORKERS),
        "feed": partial(_feed, plan),
    }
    raw: list[float] = []
    speeds: dict[str, list[Speed]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        raw.append(_raw_mb_per_s(shards))
        for name, stream in ways.items():
            speeds[name].append(time_middle(stream, num_steps))
    figures = {name: _median(speed) for name, speed in speeds.items()}
    best = max((name for name in ways if name != "feed"), key=lambda name: figures[name]["mb_per_s"])
    # Round by round, so that what slows the machine for a while slows both.
    ratios = [ours.mb_per_s / theirs.mb_per_s for ours, theirs in zip(speeds["feed"], speeds[best], strict=True)]
    return {"raw Parquet": {"mb_per_s": median(raw)}, **figures, "feed_over_dataloader": median(ratios)}


def dataloader(plan: FeedPlan, workers: int) -> Iterator[Batch]:
    """Yield the batches of a one-rank plan from torch's DataLoader."""
    step_bytes = plan.batch_size * OpenedPlan.open(plan).bytes_per_sample
    return iter(
        DataLoader(
            StepDataset(replace(plan, block_bytes=round(step_bytes))),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=LOADER_PREFETCH if workers else None,
        )
    )


def _feed(plan: FeedPlan) -> Iterator[Batch]:
    (iterator,) = feed.build_dataset(plan).streaming_split(1, equal=True)
    return feed.batches(iterator, plan, 0, "cpu")


def time_middle(start: Callable[[], Iterator[Batch]], num_steps: int) -> Speed:
    """Measure the middle of a stream, then read the rest: Ray complains about readers that stop in the middle."""
    began = time.perf_counter()
    stream = start()
    next(stream)
    first_batch_s = time.perf_counter() - began
    skipped, timed = round(TIMED_FROM * num_steps) - 1, round((TIMED_TO - TIMED_FROM) * num_steps)
    for _ in range(skipped):
        next(stream)
    began, num_bytes, num_samples = time.perf_counter(), 0, 0
    for _ in range(timed):
        batch = next(stream)
        _touch(batch)
        num_bytes += batch.voxels.nbytes
        num_samples += len(batch)
    seconds = time.perf_counter() - began
    for _ in stream:
        pass
    return Speed(num_bytes / 1e6 / seconds, num_samples / seconds, first_batch_s)


def _touch(batch: Batch) -> None:
    """Read a byte of every page of the voxels."""
    batch.voxels.view(torch.uint8).flatten()[:: mmap.PAGESIZE].sum()


def _raw_mb_per_s(shards: ShardSet) -> float:
    """Read the voxels of all row groups in one thread, and do nothing with them."""
    began, num_bytes = time.perf_counter(), 0
    for file in shards.files:
        with open_shard(shards.uri, file.name) as shard:
            for group in range(shard.num_row_groups):
                num_bytes += shard.read_row_group(group, columns=["voxels"], use_threads=False).nbytes
    return num_bytes / 1e6 / (time.perf_counter() - began)


def _median(speeds: list[Speed]) -> dict[str, float]:
    return {name: median(getattr(speed, name) for speed in speeds) for name in asdict(speeds[0])}
