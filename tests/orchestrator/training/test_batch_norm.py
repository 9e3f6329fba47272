"""Batches whose batch norm cannot be computed, or would be another's, are refused with what would work."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.runs import finetune, pretrain
from tests.experiments import POOLED_UNET, UNET, tiny_experiment, tiny_segmentation
from tests.shardsets import write_pictures, write_slices

ROTATION = "method={name: rotation, side: 32}"
CLASSES = {"name": "classification", "kind": "single", "size": 32, "hidden_dims": [8]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("norms")
    write_pictures(folder / "pictures")
    write_slices(folder / "slices", size=64)
    return folder


def tree(folder: Path, encoder: dict[str, Any] = POOLED_UNET) -> dict[str, Any]:
    return tiny_experiment("norms", str(folder / "pictures"), folder / "runs", 4, encoder=encoder)


def segmentation(folder: Path) -> dict[str, Any]:
    task = {"name": "segmentation", "crop_size": [64, 64]}
    return {"downstream": {**tiny_segmentation(str(folder / "slices")), "task": task}}


def check(experiment: Experiment) -> None:
    """Check an experiment as a training does before anything starts."""
    pretrain.check(experiment)
    if experiment.downstream:
        finetune.check(experiment)


def test_micro_batches_that_would_divide_batch_statistics_are_refused_with_what_would_work(folder: Path) -> None:
    micro = ["resources.workers=2", "resources.micro_batch_size=2", ROTATION]
    words = (
        r"micro_batch_size 2: the 4 samples of a worker would pass batch norm in 2 chunks, .* set "
        r"resources\.workers to 4, .* or resources\.micro_batch_size to 4, .* or set training\.sync_batch_norm=false"
    )
    with pytest.raises(ValueError, match=words):
        check(resolve(tree(folder), micro))
    for works in ("resources.workers=4", "resources.micro_batch_size=4", "training.sync_batch_norm=false"):
        check(resolve(tree(folder), [*micro, works]))


def test_a_pretraining_that_trains_nothing_is_not_held_to_its_micro_batches(folder: Path) -> None:
    micro = ["resources.micro_batch_size=2", "method={name: scratch}"]
    check(resolve(tree(folder), micro))
    with pytest.raises(ValueError, match=r"the 12 samples of a worker would pass batch norm in 6 chunks"):
        check(resolve({**tree(folder), **segmentation(folder)}, micro))
    check(
        resolve({**tree(folder), **segmentation(folder)}, [*micro, "downstream.resources={micro_batch_size: null}"])
    )


def test_a_batch_of_one_sample_that_a_head_cannot_normalise_is_refused(folder: Path) -> None:
    words = r"^budget\.batch_size 1: batch norm .* single value per channel, .*; set budget\.batch_size to 2 or more$"
    with pytest.raises(ValueError, match=words):
        check(resolve(tree(folder), ["budget.batch_size=1"]))


def test_workers_with_one_sample_each_and_statistics_of_their_own_are_refused(folder: Path) -> None:
    two = ["budget.batch_size=4", "resources.workers=4"]
    check(resolve(tree(folder), two))
    words = r"budget\.batch_size 4: .* training\.sync_batch_norm=false .* true, or resources\.workers to 2 or fewer"
    with pytest.raises(ValueError, match=words):
        check(resolve(tree(folder), [*two, "training.sync_batch_norm=false"]))


@pytest.mark.slow
def test_a_batch_of_one_sample_with_several_values_per_channel_is_taken(folder: Path) -> None:
    check(resolve(tree(folder), ["budget.batch_size=1", ROTATION]))  # a batch holds each sample at all angles
    batch_norm = {**UNET, "norm": "batch"}
    check(resolve({**tree(folder, batch_norm), **segmentation(folder)}, ["downstream.budget.batch_size=1"]))


def test_a_classification_of_one_picture_at_a_time_is_refused_where_its_head_has_batch_norm(folder: Path) -> None:
    task = {**tiny_segmentation(str(folder / "pictures")), "task": CLASSES}
    with pytest.raises(ValueError, match=r"^downstream\.budget\.batch_size 1: batch norm"):
        check(resolve({**tree(folder), "downstream": task}, ["downstream.budget.batch_size=1"]))
