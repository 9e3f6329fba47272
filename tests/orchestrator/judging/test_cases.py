"""Cases: a validation's file of single scores, whose means are the metrics, and how files are joined."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from data.shards.index import ShardSet
from methods.downstream.base import Task, TaskScores, merge
from methods.downstream.classification import Classification
from methods.downstream.detection import Detection
from methods.downstream.segmentation import Segmentation
from methods.encoders import DenseNetEncoder, UNetEncoder
from orchestrator.judging.cases import joined, to_parquet
from orchestrator.training.loop import World
from orchestrator.training.samples import batches_of
from tests.batches import facts_of
from tests.shardsets import SLICES_PER_VOLUME, write_findings, write_pictures, write_slices

CPU = torch.device("cpu")
REGIONS = {"both": (1, 2), "kidney": (2,)}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open(write_slices(tmp_path_factory.mktemp("slices"), num_patients=12, size=40))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open(write_pictures(tmp_path_factory.mktemp("pictures"), num_classes=3))


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open(write_findings(tmp_path_factory.mktemp("boxed")))


class Thresholds(nn.Module):
    """Finds some of each label: the shards store 40 to 80 for background and 60 more per label."""

    def __init__(self, *outputs: tuple[float, float]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([slope * images[:, 0] * 255 - offset for slope, offset in self.outputs], dim=1)


def segmentation_of(shards: ShardSet, **fields: object) -> Segmentation:
    """A task that is partly right: its scores differ from case to case."""
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(4, 4, 8, 8, 8, 4)))
    config = Segmentation.Config(crop_size=(32, 32), **fields)
    task = Segmentation(config, encoder, facts_of(shards.label_names)).eval()
    task.network = Thresholds((1, 110), (1, 180)) if config.regions else Thresholds((0, 0), (1, 110), (2, 290))
    return task


def classification_of(shards: ShardSet, **fields: object) -> Classification:
    torch.manual_seed(0)
    widths = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "init_features": 8}
    encoder = DenseNetEncoder(DenseNetEncoder.Config(spatial_dims=2, **widths))
    config = Classification.Config(size=32, hidden_dims=(), score="accuracy", **fields)
    return Classification(config, encoder, facts_of(shards.class_names)).eval()


def detection_of(shards: ShardSet) -> Detection:
    """A task that finds next to nothing, but something in every image."""
    torch.manual_seed(0)
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(4, 4, 8, 8, 8, 4)))
    fields = {"size": 64, "pyramid_channels": 8, "head_dims": (16,), "most_detections": 5, "score_threshold": 0.0}
    return Detection(Detection.Config.model_validate(fields), encoder, facts_of(shards.box_names)).eval()


def scored(task: Task, shards: ShardSet, num_ranks: int = 1) -> TaskScores:
    """Score the validation samples, shared out over ranks."""
    rows = shards.select("val", having=task.needs).row_ids
    batches = [
        batch
        for rank in range(num_ranks)
        for batch in batches_of(shards, rows, World(rank, num_ranks, CPU), task.needs)
    ]
    return task.scores(merge((task.judge(batch).evidence for batch in batches), task.joined))


def read(file: bytes) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(file))


@pytest.mark.parametrize("fields", [{}, {"regions": REGIONS}, {"regions": REGIONS, "convention": "brats"}])
def test_means_over_the_cases_of_a_segmentation_are_its_metrics(slices: ShardSet, fields: dict) -> None:
    scores = scored(segmentation_of(slices, **fields), slices)
    cases = read(to_parquet("validation", scores.cases))
    assert list(cases.columns) == ["split", "case", "label", "dice", "iou"]
    assert set(cases["case"]) == {"v009", "v010", "v011"}
    for metric in ("dice", "iou"):
        by_label = cases.groupby("label")[metric].mean()
        assert cases[metric].nunique() > 1
        assert {f"{metric}/{name}": value for name, value in by_label.items()} == pytest.approx(
            {name: value for name, value in scores.metrics.items() if name.startswith(f"{metric}/")}
        )
        assert by_label.mean() == pytest.approx(scores.metrics[f"{metric}_mean"])


def test_a_case_is_a_slice_where_slices_are_averaged_and_a_skipped_label_has_no_score(slices: ShardSet) -> None:
    task = segmentation_of(slices, convention="thesis")
    scores = scored(task, slices)
    absent = np.array([[9, 1, 0], [0, 0, 0], [0, 2, 4]])  # no voxel of the second class
    cases = read(to_parquet("validation", task.scores({"s-0": absent, "s-1": np.diag([1, 2, 3])}).cases))
    assert cases["dice"].isna().tolist() == [False, True, False, False, False, False]
    assert cases["iou"].tolist()[:3] == pytest.approx([9 / 10, np.nan, 4 / 6], nan_ok=True)
    cases = read(to_parquet("validation", scores.cases))
    assert len(cases) == 3 * 3 * SLICES_PER_VOLUME
    assert list(cases["case"][::3])[:2] == ["v009-00", "v009-01"]
    assert cases.groupby("case")["dice"].mean().mean() == pytest.approx(scores.metrics["score"])


@pytest.mark.parametrize("kind", ["single", "ordinal"])
def test_cases_of_a_classification_hold_truth_prediction_and_probabilities(pictures: ShardSet, kind: str) -> None:
    scores = scored(classification_of(pictures, kind=kind), pictures)
    cases = read(to_parquet("test", scores.cases))
    names = ["grade 0", "grade 1", "grade 2"]
    assert list(cases.columns) == ["split", "case", "true", "predicted", *(f"probability/{name}" for name in names)]
    assert (set(cases["split"]), list(cases["case"])) == ({"test"}, [f"x{n:03d}" for n in range(18, 24)])
    assert list(cases["true"]) == [names[n % 3] for n in range(18, 24)]
    assert (cases["true"] == cases["predicted"]).mean() == pytest.approx(scores.metrics["accuracy"])
    assert cases[[f"probability/{name}" for name in names]].sum(axis=1).tolist() == pytest.approx([1] * 6)


def test_cases_of_several_classes_each_have_truth_values(pictures: ShardSet) -> None:
    scores = scored(classification_of(pictures, kind="multi_label"), pictures)
    cases = read(to_parquet("validation", scores.cases))
    right = [cases[f"true/grade {n}"] == cases[f"predicted/grade {n}"] for n in range(3)]
    assert np.mean(right) == pytest.approx(scores.metrics["label_accuracy"])
    assert np.all(right, axis=0).mean() == pytest.approx(scores.metrics["accuracy"])
    for n in range(3):
        assert ((cases[f"probability/grade {n}"] > 0.5) == cases[f"predicted/grade {n}"]).all()
    assert cases["true/grade 1"].tolist() == [n % 3 == 1 for n in range(18, 24)]


def test_cases_of_a_detection_hold_what_was_found_and_null_where_there_is_no_true_box(boxed: ShardSet) -> None:
    scores = scored(detection_of(boxed), boxed)
    cases = read(to_parquet("validation", scores.cases))
    assert list(cases.columns) == [
        "split", "case", "true_boxes", "detections", "found", "sensitivity", "ap50", "boxes",
    ]  # fmt: skip
    assert list(cases["case"]) == ["f008", "f009", "f010", "f011"]
    assert cases["true_boxes"].tolist() == [1, 2, 1, 0]
    assert cases["detections"].tolist() == [5] * 4
    assert cases["sensitivity"].isna().tolist() == cases["ap50"].isna().tolist() == [False] * 3 + [True]
    known = cases.dropna()
    assert known["sensitivity"].tolist() == pytest.approx((known["found"] / known["true_boxes"]).tolist())


@pytest.mark.slow
def test_two_ranks_give_the_same_file_as_one(slices: ShardSet, boxed: ShardSet) -> None:
    for task, shards in ((segmentation_of(slices), slices), (detection_of(boxed), boxed)):
        alone, together = (to_parquet("validation", scored(task, shards, ranks).cases) for ranks in (1, 2))
        assert together == alone


def test_joined_files_hold_the_cases_of_both_in_order() -> None:
    parts = [
        to_parquet("validation", {"case": ["a", "b"], "dice": np.array([0.5, np.nan])}),
        to_parquet("test", {"case": ["c"], "dice": np.array([np.nan])}),
    ]
    cases = read(joined(parts))
    assert cases["split"].tolist() == ["validation", "validation", "test"]
    assert cases["case"].tolist() == ["a", "b", "c"]
    assert cases["dice"].tolist() == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
    assert cases["dice"].dtype == float
