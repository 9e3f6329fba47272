"""Feed: the samples of a run, streamed by Ray Data to its ranks in the order that ``data.order`` says.

    block numbers -> one number per task -> reader processes -> split over ranks, block b to rank b mod W -> batches

Without reader processes, each rank reads its own blocks in a thread, and Ray Data has no part in it.

Ray Data keeps no position from which a run could continue, so the order is ours: a feed is built for the steps that
remain, and after a failure it is built again from the last checkpoint's step. One execution covers the whole budget,
so no pipeline restarts at an epoch's end. Ray does not promise that splitting keeps the order, so every batch names
its samples, and these are checked.
"""

from collections.abc import Generator, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, DataIterator, Dataset, ExecutionOptions
from ray.exceptions import RayTaskError
from ray.train import DataConfig

from data.shards.writer import ShardError
from data.views.batch import Batch
from data.views.collate import BatchMemory, collate
from orchestrator.feed.backpressure import make_numbers_on_demand
from orchestrator.feed.plan import BlockReader, FeedPlan, OpenedPlan
from orchestrator.feed.prefetch import prefetched

# The next blocks wait for a free reader, and blocks that are read wait for a slower block before them.
BLOCKS_PER_READER = 4
PREFETCHED_BLOCKS = 2
PREFETCHED_BATCHES = 2
# Readers wait for disks and decompress; a whole CPU each would keep small machines from placing a job.
CPUS_PER_READER = 0.5


class FeedError(RuntimeError):
    """A feed delivered other samples than its plan names."""


def build_dataset(plan: FeedPlan) -> Dataset:
    """Return the dataset whose rows are the samples of the plan's remaining steps; nothing is read yet.

    Called in Train's controller, which does not have the driver's context: what the execution needs is set here.
    Raises ShardError if the shards are missing or are not those of the plan.
    """
    num_blocks = OpenedPlan.open(plan).num_blocks
    context = DataContext.get_current().copy()
    context.target_max_block_size = None
    context.execution_options = _execution_options()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.memory_usage_poll_interval_s = None  # a thread per task costs a tenth as much as the reading
    make_numbers_on_demand(context)
    with DataContext.current(context):
        # One task hands out all numbers on demand, so that a budget of a million steps starts at once.
        numbers = ray.data.range(num_blocks, override_num_blocks=1)
        return numbers.repartition(target_num_rows_per_block=1, strict=True).map_batches(
            BlockReader,
            fn_constructor_args=(plan,),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=CPUS_PER_READER,
            resources={plan.reader_resource: 1} if plan.reader_resource else None,
            compute=ActorPoolStrategy(size=plan.num_readers, max_tasks_in_flight_per_actor=BLOCKS_PER_READER),
        )


def data_config() -> DataConfig:
    """Return how Train should split the feed: in order, one block for each rank in turn."""
    return DataConfig(execution_options=_execution_options(), enable_shard_locality=False)


def _execution_options() -> ExecutionOptions:
    return ExecutionOptions(preserve_order=True)


def batches(iterator: DataIterator | None, plan: FeedPlan, rank: int, device: torch.device | str) -> Iterator[Batch]:
    """Yield a rank's batch of every remaining step, on its device; the next ones are prepared meanwhile.

    The rank reads the shards itself where there is no ``iterator``, its split of ``build_dataset``. A batch is valid
    until the next one is asked for: the memory of its voxels and label maps is used again. Raises the reader's
    ShardError if a shard cannot be read, and FeedError if the samples that arrive are not the plan's.
    """
    on_gpu = torch.device(device).type == "cuda"
    memory = BatchMemory(pin=on_gpu)
    tables = _read(plan, rank) if iterator is None else _tables(iterator)
    stream = prefetched(lambda: _collated(tables, plan, memory), PREFETCHED_BATCHES)
    for batch in _checked(stream, plan, rank):
        moved = batch.to(device, non_blocking=on_gpu)
        copied = torch.cuda.current_stream(device).record_event() if on_gpu else None
        yield moved
        del moved
        if copied is not None:
            copied.synchronize()
        memory.take_back(batch)


def local_batches(plan: FeedPlan, rank: int) -> Iterator[Batch]:
    """Yield the same batches without Ray, each in memory of its own."""
    return _checked(prefetched(lambda: _collated(_read(plan, rank), plan), PREFETCHED_BATCHES), plan, rank)


def first_samples(plan: FeedPlan, number: int) -> Batch:
    """Return the first samples of a run, read without Ray; no further ones are read."""
    first = replace(plan, batch_size=number, world=1, first_step=0, last_step=1)
    return next(local_batches(first, rank=0))


def bytes_in_flight(plan: FeedPlan) -> int:
    """Estimate the voxel bytes that the whole run holds at once: being read, waiting and collated."""
    source = OpenedPlan.open(plan)
    block_bytes = min(source.block_size, plan.samples_per_rank) * source.bytes_per_sample
    blocks = plan.num_readers * BLOCKS_PER_READER + plan.world * (bool(plan.num_readers) * PREFETCHED_BLOCKS + 1)
    blocks = min(blocks, source.num_blocks)  # a short run has fewer
    batch_bytes = plan.samples_per_step * source.bytes_per_sample
    return round(blocks * block_bytes + plan.world * (PREFETCHED_BATCHES + 2) * batch_bytes)


def _read(plan: FeedPlan, rank: int) -> Iterator[pa.Table]:
    """Read a rank's blocks in this process."""
    reader = BlockReader(plan)
    for block in range(rank, OpenedPlan.open(plan).num_blocks, plan.world):
        yield reader.read(block)


def _tables(iterator: DataIterator) -> Iterator[pa.Table]:
    """Yield a rank's blocks; raise a reader's own error rather than Ray's wrapper of it."""
    try:
        yield from iterator.iter_batches(
            batch_size=None,  # pyright: ignore[reportArgumentType]  # documented: whole blocks, not copied
            batch_format="pyarrow",
            prefetch_batches=PREFETCHED_BLOCKS,
        )
    except RayTaskError as error:
        if isinstance(error.cause, ShardError):
            raise ShardError(*error.cause.args) from None
        raise


def _collated(tables: Iterator[pa.Table], plan: FeedPlan, memory: BatchMemory | None = None) -> Generator[Batch]:
    """Cut a rank's blocks into batches of one step each."""
    size, waiting = plan.samples_per_step, None
    for table in tables:
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows >= size:
            yield collate(waiting.slice(0, size), memory)
            waiting = waiting.slice(size)


def _checked(stream: Iterator[Batch], plan: FeedPlan, rank: int) -> Iterator[Batch]:
    """Yield the batches after comparing their sample numbers with the plan's."""
    size = plan.samples_per_step
    for step in range(plan.first_step, plan.last_step):
        start = (step - plan.first_step) * size
        expected = plan.numbers(rank, start, start + size)
        batch = next(stream, None)
        if batch is None or not np.array_equal(batch.numbers, expected):
            found = "no more samples" if batch is None else f"samples {_few(batch.numbers)}"
            raise FeedError(
                f"feed: rank {rank} of {plan.world} got {found} for step {step}, expected {_few(expected)}; start "
                "the same command again, it goes on from the last checkpoint"
            )
        yield batch


def _few(numbers: np.ndarray) -> str:
    shown = ", ".join(str(number) for number in numbers[:4])
    return shown if len(numbers) <= 4 else f"{shown}, ... ({len(numbers)})"
