"""Validation: when it is due, what every rank adds to it, and what it pictures."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from data.labels import BOXES, LABEL_MAP
from data.shards.index import ShardSet
from data.views.batch import Batch
from methods.downstream.base import merge
from methods.downstream.detection import Detection
from methods.downstream.segmentation import Segmentation
from methods.encoders import UNetEncoder
from orchestrator.judging.gallery import MaskGallery
from orchestrator.judging.validation import Rhythm, Validation
from orchestrator.training.checkpoint import State
from orchestrator.training.samples import batches_of
from orchestrator.training.world import World
from tests.batches import facts_of
from tests.shardsets import SLICES_PER_VOLUME, write_findings, write_slices

WORLD = World(0, 1, torch.device("cpu"))


class ByIntensity(nn.Module):
    """Predicts from the intensity alone: the test's shards store 40 to 80 for background and 60 more per label."""

    def forward(self, images: Tensor) -> Tensor:
        level = (images[:, 0] * 255 - 60) / 60
        return -torch.stack([(level - k).abs() for k in range(3)], dim=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open(write_slices(tmp_path_factory.mktemp("shards"), num_patients=8, size=40))


def method_of(shards: ShardSet) -> Segmentation:
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(4, 4, 8, 8, 8, 4)))
    method = Segmentation(Segmentation.Config(crop_size=(32, 32)), encoder, facts_of(shards.label_names))
    method.network = ByIntensity()
    return method


def validation_of(shards: ShardSet) -> Validation:
    return Validation(shards, shards.select(split="val", having=LABEL_MAP).row_ids, Rhythm(Fraction(5), 10))


@pytest.mark.slow
def test_a_perfect_prediction_scores_one_in_every_metric(shards: ShardSet) -> None:
    metrics = validation_of(shards).run(method_of(shards), WORLD)
    names = ("score", "dice_mean", "iou_mean", "dice/liver", "dice/kidney", "iou/liver", "iou/kidney")
    assert metrics == dict.fromkeys(names, 1.0)


def test_ranks_share_the_samples_out_and_each_is_predicted_once(shards: ShardSet) -> None:
    validation, method = validation_of(shards), method_of(shards)
    ids = []
    parts = []
    for rank in range(3):
        for batch in batches_of(shards, validation.row_ids, World(rank, 3, torch.device("cpu")), LABEL_MAP):
            ids += batch.sample_ids
            parts.append(method.judge(batch).evidence)
    assert len(ids) == len(set(ids)) == 2 * SLICES_PER_VOLUME
    counts = merge(parts)
    assert {name: int(c.sum()) for name, c in counts.items()} == dict.fromkeys(counts, SLICES_PER_VOLUME * 40 * 40)
    assert len(counts) == 2


def test_the_picture_shows_one_slice_of_each_volume(shards: ShardSet) -> None:
    validation = validation_of(shards)
    validation.run(method_of(shards), WORLD)
    assert list(validation.drawn) == ["predictions.png"]
    image = Image.open(io.BytesIO(validation.drawn["predictions.png"]))
    assert image.format == "PNG"
    bare = Validation(shards, validation.row_ids, validation.rhythm, pictures=False)
    bare.run(method_of(shards), WORLD)
    assert bare.drawn == {}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 56), (12, 40, 44)], ids=["pictures", "volumes"])
def test_a_detection_is_validated_and_pictured_from_the_boxes_of_shards(
    tmp_path: Path, size: tuple[int, ...]
) -> None:
    shards = ShardSet.open(write_findings(tmp_path, size))
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=len(size), features=(4, 4, 8, 8, 8, 4)))
    fields = {"size": 64, "pyramid_channels": 8, "head_dims": (16,), "score": "mfroc"}
    method = Detection(Detection.Config.model_validate(fields), encoder, facts_of(shards.box_names)).eval()
    validation = Validation(shards, shards.select(split="val", having=BOXES).row_ids, Rhythm(Fraction(5), 10))
    metrics = validation.run(method, WORLD)
    assert set(metrics) == {
        "score", "ap", "ap50", "ap75", "ap50/nodule", "ap50/mass", "mfroc",
        *(f"sensitivity_at_{bound}" for bound in ("0.5", "1", "2", "4")),
    }  # fmt: skip
    assert metrics["score"] == metrics["mfroc"]
    units = validation.cases["case"]
    assert (units == ["f008", "f009", "f010", "f011"]) == (len(size) == 2)
    assert len(units) > 4 or len(size) == 2
    assert Image.open(io.BytesIO(validation.drawn["predictions.png"])).format == "PNG"


def test_a_volume_is_pictured_by_its_richest_axial_plane_without_the_batch_s_padding() -> None:
    true = torch.zeros(4, 5, 6, dtype=torch.int64)
    true[1, :, :3] = 1  # many voxels of one label
    true[2, 0, 0], true[2, 1, 1] = 1, 2  # few of two labels
    voxels = torch.arange(2 * 7 * 8 * 9, dtype=torch.int32).reshape(2, 1, 7, 8, 9)
    batch = Batch(
        voxels=voxels,
        extents=np.array([[4, 5, 6], [7, 8, 9]]),
        scale=torch.ones(2),
        offset=torch.zeros(2),
        spacing_mm=np.tile(np.float32([3, 2, 1]), (2, 1)),
        sample_ids=("s-1", "s-2"),
        volumes=("s-1", "s-2"),
        numbers=np.arange(2),
        rows=np.arange(2),
        epochs=np.zeros(2, dtype=np.int64),
    )
    gallery = MaskGallery()
    gallery.offer(batch, 0, true, true + 1)
    (_, shown) = gallery.best["s-1"]
    assert (shown.title, shown.spacing_mm, shown.upright) == ("s-1, slice 2", (2.0, 1.0), False)
    np.testing.assert_array_equal(shown.image, voxels[0, 0, 2, :5, :6].float())
    np.testing.assert_array_equal(shown.truth, true[2])
    np.testing.assert_array_equal(shown.prediction, true[2] + 1)


def test_validation_is_due_every_ten_epochs_and_from_ninety_on_every_epoch() -> None:
    rhythm = Rhythm(Fraction(4), every_epochs=10, dense_from=90)
    due = [step / 4 for step in range(1, 95 * 4 + 1) if rhythm.due(step)]
    assert due == [10, 20, 30, 40, 50, 60, 70, 80, 90, 91, 92, 93, 94, 95]


def test_validation_keeps_its_rhythm_where_an_epoch_is_no_whole_number_of_steps() -> None:
    rhythm = Rhythm(Fraction(5050, 32), every_epochs=1)
    due = [step for step in range(1, 1580) if rhythm.due(step)]
    assert due == [-(-epoch * 5050 // 32) for epoch in range(1, 11)]
    assert [step for step in range(1, 127) if Rhythm(Fraction(42, 10), 10).due(step)] == [42, 84, 126]


def test_training_is_given_up_after_the_patience_without_a_better_score() -> None:
    rhythm = Rhythm(Fraction(4), every_epochs=1, patience_epochs=20)
    assert not rhythm.exhausted(State(step=179, best_step=100))
    assert rhythm.exhausted(State(step=180, best_step=100))
    assert not Rhythm(Fraction(4), 1).exhausted(State(step=10_000, best_step=4))


def test_patience_ends_at_its_very_step_where_an_epoch_is_no_whole_number_of_steps() -> None:
    rhythm = Rhythm(Fraction(100, 3), every_epochs=0.3, patience_epochs=15)
    assert not rhythm.exhausted(State(step=499, best_step=0))
    assert rhythm.exhausted(State(step=500, best_step=0))
    assert [step for step in range(1, 31) if rhythm.due(step)] == [10, 20, 30]


@pytest.mark.slow
def test_shards_folder_is_only_read(shards: ShardSet, tmp_path: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in Path(shards.uri).iterdir()}
    validation_of(shards).run(method_of(shards), WORLD)
    assert {p.name: p.stat().st_mtime_ns for p in Path(shards.uri).iterdir()} == before
