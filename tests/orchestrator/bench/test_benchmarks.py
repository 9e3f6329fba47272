"""The benchmark compares like with like: same samples in the same order, however they are loaded."""

import pytest

from data.shards.index import ShardSet
from orchestrator.bench import cohort, loading
from orchestrator.bench.drawing import time_per_image
from orchestrator.bench.targets import Target, reached
from orchestrator.feed.plan import FeedPlan, SetPlan
from orchestrator.feed.stream import local_batches


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FeedPlan:
    uri = cohort.write_slice_shards(tmp_path_factory.mktemp("bench") / "slices", 40)
    return FeedPlan((SetPlan(uri, ShardSet.open(uri).digest),), seed=1, batch_size=8, last_step=12)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_dataloader_visits_the_feeds_samples_in_the_feeds_order(plan, workers):
    loaded = [batch.sample_ids for batch in loading.dataloader(plan, workers)]
    assert loaded == [batch.sample_ids for batch in local_batches(plan, 0)]


def test_synthetic_slices_compress_like_ct(plan):
    shards = ShardSet.open(plan.sets[0].shards)
    raw_bytes = shards.num_samples * 300 * 300 * 2
    assert 1.2 < raw_bytes / shards.num_bytes < 2.5


def test_synthetic_scans_differ(tmp_path):
    paths = sorted(cohort.write_scans(tmp_path / "scans", 10).iterdir())
    assert len({path.read_bytes() for path in paths}) == 10


def test_the_middle_of_a_stream_is_timed(plan):
    speed = loading.time_middle(lambda: local_batches(plan, 0), plan.last_step)
    assert speed.mb_per_s == pytest.approx(speed.samples_per_s * 300 * 300 * 2 / 1e6)
    assert speed.first_batch_s > 0


@pytest.mark.slow
def test_drawing_is_timed_under_a_bound_and_without():
    times = time_per_image(16)
    assert set(times) == {"iou_pair_us", "plain_crops_us"}
    assert min(times.values()) > 0


def test_targets_say_what_is_missed():
    figures = {
        "slices": {"feed_over_dataloader": 1.2},
        "volumes": {"feed_over_dataloader": 0.9},
        "drawing": {"share_of_loading": 0.02},
        "training": {"ingest_growth": 0.05, "training_growth": 0.3},
    }
    targets = reached(figures)
    assert [target.met for target in targets] == [True, False, False, True, False]
    assert targets[1] == Target("feed / better DataLoader, volumes", 0.9, "at least 1", False)
