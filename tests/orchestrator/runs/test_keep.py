"""A filter over samples holds wherever samples are selected, and a refusal names the filter that would help."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from data.shards.index import ShardSet
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.feed import stream
from orchestrator.judging.health import HealthWatch
from orchestrator.judging.probing import ProbeSet, ProbeWatch
from orchestrator.runs import dry_run, finetune, pretrain
from orchestrator.runs.course import Course
from tests.experiments import tiny_experiment
from tests.shardsets import write_odd_sizes

KEPT = {f"x{n:03d}" for n in range(12) if n % 3}
KEPT_VAL = {f"x{n:03d}" for n in range(12, 18) if n % 3}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_odd_sizes(tmp_path_factory.mktemp("odd"))


def experiment(shards: str, *overrides: str) -> Experiment:
    """Return an experiment with crops of 32 pixels, which a third of the pictures cannot hold."""
    task = {
        "shards": shards,
        "task": {"name": "classification", "size": [32, 32]},
        "optimiser": {"lr": 0.01},
        "budget": {"steps": 2, "batch_size": 4},
    }
    tree = tiny_experiment("keep", shards, Path("runs"), 4, downstream=task, probe={"shards": shards, "size": 32})
    return resolve(tree, overrides)


def refusal(shards: str, *overrides: str) -> str:
    asked = experiment(shards, *overrides)
    with pytest.raises(ValueError, match="samples") as caught:
        pretrain.check(asked)
    return str(caught.value)


def test_the_refusal_of_samples_that_are_too_small_names_the_filter_that_leaves_them_out(shards: str) -> None:
    message = refusal(shards)
    assert message.startswith(
        "data: 4 of 12 samples cannot be used: crop size (32, 32) exceeds samples of size (20, 20); "
    )
    assert message.endswith("; or leave these 4 samples out by data.keep.min_size='[32, 32]'")
    advised = re.findall(r"by (data\S+ .*)$", message)[0].replace("'", "")
    asked, opened = experiment(shards, advised), ShardSet.open(shards)
    selection = asked.data.selected(opened)
    pretrain.check(asked)
    assert selection.num_samples == 8


def test_no_filter_is_named_where_it_would_leave_nothing_or_cannot_tell_the_samples_apart(shards: str) -> None:
    message = refusal(shards, "method.crops.size=64")
    assert message.startswith(
        "data: 12 of 12 samples cannot be used: crop size (64, 64) exceeds samples of size (20, 20)"
    )
    assert "keep" not in message


def test_all_who_select_samples_see_the_same(shards: str) -> None:
    keep = "keep={min_size: 32}"
    asked = experiment(shards, *(f"{part}.{keep}" for part in ("data", "downstream", "probe")), "probe.neighbours=2")
    opened = ShardSet.open(shards)
    names = opened.rows["sample_id"]
    course = Course.open(asked)
    assert {name for batch in stream.local_batches(course.feed, rank=0) for name in batch.sample_ids} == KEPT
    health, probe = pretrain.watches_of(course)
    assert isinstance(health, HealthWatch)
    assert {name for _, rows in health.samples for name in names.take(rows).to_pylist()} == KEPT
    assert isinstance(probe, ProbeWatch)
    assert asked.probe is not None
    for samples in (probe.samples, ProbeSet.open(asked.probe)):
        assert set(names.take(samples.train).to_pylist()) == KEPT
        assert set(names.take(samples.val).to_pylist()) == KEPT_VAL
    labelled = finetune.check(asked)
    assert set(names.take(labelled.train.row_ids).to_pylist()) == KEPT
    assert set(names.take(labelled.val.row_ids).to_pylist()) == KEPT_VAL
    steps = finetune.plan_of(asked, labelled)
    tuned = stream.local_batches(finetune.feed_of(asked, labelled, steps), rank=0)
    assert {name for batch in tuned for name in batch.sample_ids} == KEPT


def test_a_filter_that_leaves_nothing_is_refused_with_the_counts_of_each_criterion(shards: str) -> None:
    counts = r"min_size=64 leaves out {0}, modalities=\['MR'\] leaves out {1}"
    keep = "keep={min_size: 64, modalities: [MR]}"
    with pytest.raises(
        ValueError, match=rf"data\.keep leaves out all 12 samples .*{counts.format(12, 8)}; widen data"
    ):
        experiment(shards, f"data.{keep}").data.selected(ShardSet.open(shards))
    with pytest.raises(ValueError, match=rf"downstream\.keep leaves out all 12 .*{counts.format(12, 8)}; widen down"):
        finetune.check(experiment(shards, f"downstream.{keep}"))
    probe = experiment(shards, f"probe.{keep}").probe
    assert probe is not None
    with pytest.raises(ValueError, match=rf"probe\.keep leaves out all 12 .*{counts.format(12, 8)}; widen probe"):
        ProbeSet.open(probe)
    with pytest.raises(ValueError, match=r"data\.keep\.datasets names x, which no sample has"):
        experiment(shards, "data.keep.datasets=[x]").data.selected(ShardSet.open(shards))


def test_a_dry_run_says_how_many_samples_are_left_out(shards: str) -> None:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(dry_run.describe(experiment(shards, "data.keep.min_size=32")))
    assert "data.keep leaves out 4 of its split (min_size=32 leaves out 4)" in capture.get()


def test_without_a_filter_an_experiment_reads_and_is_named_as_before_there_were_filters(shards: str) -> None:
    plain, spelt_out = experiment(shards), experiment(shards, "data.keep={}", "data.keep.min_size=null")
    assert plain.pretrain_key("digest") == spelt_out.pretrain_key("digest")
    tree = plain.model_dump(mode="json")
    assert not [part for part in ("data", "downstream", "probe") if "keep" in tree[part]]
    filtered = experiment(shards, "data.keep.min_size=32")
    assert filtered.model_dump(mode="json")["data"]["keep"] == {"min_size": 32}
    assert filtered.pretrain_key("digest") != plain.pretrain_key("digest")
