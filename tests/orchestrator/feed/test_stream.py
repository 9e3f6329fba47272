"""Ranks get the samples in order, whatever the number of ranks, the size of blocks and the first step."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from ray.data import DataIterator

from data.labels import LABEL_MAP
from data.order import Order
from data.shards.index import ShardSet
from data.shards.writer import ShardError
from data.views.batch import Batch
from orchestrator.feed.backpressure import MOST_WAITING
from orchestrator.feed.plan import BlockReader, FeedPlan, OpenedPlan, SetPlan
from orchestrator.feed.stream import (
    PREFETCHED_BATCHES,
    FeedError,
    batches,
    build_dataset,
    bytes_in_flight,
    data_config,
    first_samples,
    local_batches,
)
from tests.shardsets import write_slices

SLICE_BYTES = 48 * 48
NUM_TRAIN = 36
TIMEOUT_S = 400


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("feed") / "shards")


@pytest.fixture(scope="module")
def mixed(uri: str, tmp_path_factory: pytest.TempPathFactory) -> FeedPlan:
    """Ten steps of 12 samples, three of the first set for each of the second, whose slices are larger."""
    other = write_slices(tmp_path_factory.mktemp("other"), num_patients=4, size=64, seed=1)
    return FeedPlan((of(uri, 3.0), of(other, 1.0)), seed=5, batch_size=12, last_step=10)


@pytest.fixture(scope="module")
def plan(uri: str) -> FeedPlan:
    """Seven steps of 12 samples over 36: two epochs and a third of one."""
    return FeedPlan((of(uri),), seed=5, batch_size=12, last_step=7)


def of(uri: str, weight: float | None = None) -> SetPlan:
    return SetPlan(uri, ShardSet.open(uri).digest, split="train", weight=weight)


def expected_ids(plan: FeedPlan) -> list[list[str]]:
    """Return the sample ids of every step of a plan, by the order alone."""
    (one,) = plan.sets
    shards = ShardSet.open(one.shards)
    selection = shards.select(one.split, one.patients, plan.having)
    names = np.array(shards.rows["sample_id"].to_pylist())[selection.row_ids]
    order = Order(selection.group_sizes, plan.seed)
    G = plan.batch_size
    return [names[order.positions(s * G, (s + 1) * G)].tolist() for s in range(plan.first_step, plan.last_step)]


def ids(stream) -> list[list[str]]:
    return [list(batch.sample_ids) for batch in stream]


def merged(per_rank: list[list[list[str]]]) -> list[list[str]]:
    """Join what the ranks were fed, step by step."""
    return [[name for part in parts for name in part] for parts in zip(*per_rank, strict=True)]


def through_ray(plan: FeedPlan) -> list[list[Batch]]:
    """Feed all ranks by Ray Data as Train does, each consumed in a thread of its own."""
    configured = data_config().configure({"train": build_dataset(plan)}, plan.world, None, None)
    with ThreadPoolExecutor(plan.world) as pool:
        streams = [batches(configured[rank]["train"], plan, rank, "cpu") for rank in range(plan.world)]
        return list(pool.map(copies, streams, timeout=TIMEOUT_S))


def copies(stream: Iterator[Batch]) -> list[Batch]:
    """Keep all batches of a feed, which uses their memory again."""
    return [deepcopy(batch) for batch in stream]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("block_samples", [1, 3, 5, 12, 30, 1000])
def test_ranks_together_get_the_order(plan, world, block_samples):
    cut = replace(plan, world=world, block_bytes=block_samples * SLICE_BYTES)
    assert merged([ids(local_batches(cut, rank)) for rank in range(world)]) == expected_ids(plan)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("block_samples", [5, 30, 1000])
def test_ranks_together_get_the_order_of_two_sets(mixed, world, block_samples):
    cut = replace(mixed, world=world, block_bytes=block_samples * SLICE_BYTES)
    fed = [list(local_batches(cut, rank)) for rank in range(world)]
    mixture = OpenedPlan.open(mixed).mixture
    visits = mixture.order(mixed.seed).visits(0, 10 * 12)
    rows = [np.concatenate([batch.rows for batch in parts]).tolist() for parts in zip(*fed, strict=True)]
    assert [row for step in rows for row in step] == mixture.numbers(visits).tolist()
    names = np.array([name for one in mixture.shard_sets for name in one.rows["sample_id"].to_pylist()])
    first, second = (one.selection.row_ids for one in mixture.components)
    of_rows = np.concatenate([first, mixture.shard_sets[0].num_samples + second])
    for step, parts in enumerate(zip(*fed, strict=True)):
        assert [name for batch in parts for name in batch.sample_ids] == names[of_rows[rows[step]]].tolist()
        assert sum((batch.extents[:, 0] == 48).sum() for batch in parts) == 9


@pytest.mark.parametrize("number", [1, 5, 20])
def test_the_first_samples_are_those_of_the_order_however_large_a_batch_is(mixed, number):
    rows = [row for batch in local_batches(mixed, 0) for row in batch.rows.tolist()]
    assert first_samples(replace(mixed, world=4, first_step=3), number).rows.tolist() == rows[:number]


def test_two_sets_resume_anywhere(mixed):
    whole = [batch.rows.tolist() for batch in local_batches(mixed, 0)]
    assert [batch.rows.tolist() for batch in local_batches(replace(mixed, first_step=7), 0)] == whole[7:]


def test_samples_of_two_sets_hold_what_each_set_stores(mixed, uri):
    batch = next(local_batches(mixed, 0))
    alone = {name: voxels for step in local_batches(replace(mixed, sets=mixed.sets[:1], last_step=3), 0)
             for name, voxels in zip(step.sample_ids, step.voxels, strict=True)}  # fmt: skip
    seen = [place for place in range(12) if batch.extents[place, 0] == 48]
    assert len(seen) == 9
    for place in seen:
        assert torch.equal(batch.voxels[place, :, :48, :48], alone[batch.sample_ids[place]])


def test_every_sample_of_an_epoch_is_delivered_once(plan):
    delivered = Counter(name for step in ids(local_batches(replace(plan, last_step=6), 0)) for name in step)
    assert set(delivered.values()) == {2}
    assert len(delivered) == NUM_TRAIN


def test_a_feed_from_a_middle_step_is_the_tail_of_the_whole(plan):
    whole = ids(local_batches(plan, 0))
    assert ids(local_batches(replace(plan, first_step=4), 0)) == whole[4:]


def test_batches_say_their_numbers_and_epochs(plan):
    last = list(local_batches(replace(plan, world=2), 1))[-1]
    assert last.numbers.tolist() == [78, 79, 80, 81, 82, 83]
    assert last.epochs.tolist() == [2] * 6


def test_label_maps_come_only_where_they_are_asked_for(plan):
    batch = next(local_batches(replace(plan, having=LABEL_MAP), 0))
    assert batch.labels is not None
    assert batch.labels.shape == (12, 48, 48)
    assert torch.equal(batch.labels.unique(), torch.tensor([0, 1, 2], dtype=torch.uint8))
    assert next(local_batches(plan, 0)).labels is None


def test_only_the_chosen_patients_are_fed(plan):
    chosen = replace(plan, sets=(replace(plan.sets[0], patients=("p000", "p003")),), batch_size=6, last_step=2)
    fed = {name[:4] for step in ids(local_batches(chosen, 0)) for name in step}
    assert fed == {"v000", "v003"}


def test_shards_without_classes_give_none(plan):
    assert next(local_batches(plan, 0)).classes is None


@pytest.mark.parametrize(
    ("per_step", "block_samples", "size"),
    [(12, 1000, 996), (12, 30, 24), (12, 12, 12), (12, 11, 6), (7, 3, 3), (7, 1, 1)],
)
def test_blocks_are_whole_steps_or_equal_parts_of_one(plan, per_step, block_samples, size):
    cut = replace(plan, batch_size=per_step, block_bytes=block_samples * SLICE_BYTES)
    assert OpenedPlan.open(cut).block_size == size


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_round_has_equal_blocks_for_all_ranks(plan, world):
    source = OpenedPlan.open(replace(plan, world=world, block_bytes=5 * SLICE_BYTES))
    sizes = [len(source.numbers(block)) for block in range(source.num_blocks)]
    assert all(len(set(sizes[i : i + world])) == 1 for i in range(0, len(sizes), world))
    assert sum(sizes) == 7 * 12


def test_bytes_in_flight_are_counted_in_blocks_and_batches(plan):
    small = replace(plan, block_bytes=24 * SLICE_BYTES)
    assert bytes_in_flight(replace(small, last_step=14)) == ((4 + 3) * 24 + 4 * 12) * SLICE_BYTES
    assert bytes_in_flight(small) == (4 * 24 + 4 * 12) * SLICE_BYTES, "a run of 7 steps has 4 blocks"


def test_a_batch_that_ranks_cannot_share_is_an_error(plan):
    with pytest.raises(ValueError, match=r"over 5 workers; set budget.batch_size to a multiple of 5, or take 4"):
        replace(plan, world=5)


def test_other_shards_than_the_run_began_with_are_an_error(plan):
    with pytest.raises(ShardError, match=r"the run began with 0123456789ab; restore the shards"):
        next(local_batches(replace(plan, sets=(replace(plan.sets[0], digest="0123456789abcdef"),)), 0))


def test_a_missing_shard_is_an_error_with_a_remedy(tmp_path):
    plan = without_a_shard(tmp_path)
    with pytest.raises(ShardError, match=r"shard train-00000-[0-9a-f]+.parquet: missing.*shards verify"):
        next(local_batches(plan, 0))


def without_a_shard(folder: Path) -> FeedPlan:
    uri = write_slices(folder / "shards")
    (train,) = Path(uri).glob("train-*.parquet")
    train.unlink()
    return FeedPlan((of(uri),), seed=5, batch_size=12, last_step=3)


def blocks(plan: FeedPlan, numbers: list[int]) -> DataIterator:
    """Return some blocks of a plan as Ray hands them over."""
    iterator = create_autospec(DataIterator, instance=True)
    iterator.iter_batches.return_value = map(BlockReader(plan).read, numbers)
    return iterator


def test_samples_of_another_step_are_refused(plan):
    steps = replace(plan, block_bytes=12 * SLICE_BYTES)
    stream = batches(blocks(steps, [0, 2]), steps, 0, "cpu")
    assert next(stream).numbers[0] == 0
    with pytest.raises(
        FeedError, match=r"got samples 24, 25, 26, 27, ... \(12\) for step 1, expected 12, 13, 14, 15"
    ):
        next(stream)


@pytest.mark.slow
@pytest.mark.parametrize("slow_s", [0.0, 0.02])
@pytest.mark.parametrize("by", ["readers", "the rank itself"])
def test_a_batch_is_whole_until_the_next_is_asked_for_and_its_memory_is_used_again(plan, by, slow_s):
    steps = replace(plan, having=LABEL_MAP, last_step=30, block_bytes=24 * SLICE_BYTES)
    places = set()
    fed = batches(blocks(steps, list(range(30))) if by == "readers" else None, steps, 0, "cpu")
    for got, direct in zip(fed, local_batches(steps, 0), strict=True):
        time.sleep(slow_s)
        assert torch.equal(got.voxels, direct.voxels)
        assert torch.equal(got.labels, direct.labels)
        places |= {got.voxels.data_ptr(), got.labels.data_ptr()}
    assert len(places) <= 2 * (PREFETCHED_BATCHES + 2)


def test_a_feed_that_ends_early_is_refused(plan):
    steps = replace(plan, block_bytes=12 * SLICE_BYTES)
    with pytest.raises(FeedError, match=r"got no more samples for step 2, expected 24, 25"):
        list(batches(blocks(steps, [0, 1]), steps, 0, "cpu"))


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize(("world", "first_step"), [(1, 0), (2, 0), (2, 4)])
def test_ray_data_delivers_the_order_to_every_rank(ray_cluster, plan, world, first_step):
    cut = replace(plan, world=world, first_step=first_step, num_readers=2, block_bytes=12 * SLICE_BYTES)
    fed = through_ray(cut)
    assert merged([ids(stream) for stream in fed]) == expected_ids(cut)


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_ray_data_delivers_the_voxels_and_labels_that_are_stored_in_two_sets_to_every_rank(ray_cluster, mixed):
    labelled = replace(mixed, having=LABEL_MAP, world=2, block_bytes=5 * SLICE_BYTES)
    for rank, fed in enumerate(through_ray(labelled)):
        for got, direct in zip(fed, local_batches(labelled, rank), strict=True):
            assert got.rows.tolist() == direct.rows.tolist()
            assert torch.equal(got.voxels, direct.voxels)
            assert torch.equal(got.labels, direct.labels)


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_a_budget_of_a_million_steps_starts_at_once_and_makes_few_numbers_ahead(ray_cluster, plan):
    long = replace(plan, last_step=10**6, block_bytes=12 * SLICE_BYTES)
    assert OpenedPlan.open(long).num_blocks == 10**6
    (iterator,) = build_dataset(long).streaming_split(1, equal=True)
    stream = batches(iterator, long, 0, "cpu")
    assert ids(islice(stream, 7)) == expected_ids(plan)
    time.sleep(2)
    stats = iterator.stats()
    stream.close()
    made, read = (
        int(count)
        for name in ("StreamingRepartition", "BlockReader")
        for count in re.findall(rf"{name}.*? (\d+) blocks produced", stats)
    )
    # How far ahead blocks are read depends on the memory that there is; their numbers are made just before.
    assert 7 <= read <= made <= read + 3 * MOST_WAITING


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_a_missing_shard_ends_the_feed_in_its_own_words(ray_cluster, tmp_path):
    with pytest.raises(ShardError, match=r"shard train-00000-[0-9a-f]+.parquet: missing.*shards verify"):
        through_ray(without_a_shard(tmp_path))
