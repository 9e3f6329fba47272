"""Scores of patients: their mean is the metric, whatever it is a mean of, and no patient counts twice."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data.shards.index import ShardSet
from methods.downstream.base import Task
from methods.downstream.detection_metrics import rows_of, score_detections
from orchestrator.judging.case_scores import case_scores
from orchestrator.judging.cases import to_parquet, with_patients
from orchestrator.results.claims import RowScores, against, shared_cases
from tests.orchestrator.judging.test_cases import (
    REGIONS,
    classification_of,
    pictures,
    scored,
    segmentation_of,
    slices,
)

__all__ = ["pictures", "slices"]


def written(folder: Path, task: Task, shards: ShardSet, role: str = "validation") -> tuple[Path, dict[str, float]]:
    scores = scored(task, shards)
    rows = shards.select("val", having=task.needs).row_ids
    file = folder / "cases.parquet"
    file.write_bytes(to_parquet(role, with_patients(scores.cases, shards, rows)))
    return file, scores.metrics


@pytest.mark.parametrize(
    "fields", [{}, {"convention": "thesis"}, {"regions": REGIONS}, {"regions": REGIONS, "convention": "brats"}]
)
def test_the_mean_over_patients_is_each_metric_of_a_segmentation(slices, tmp_path, fields) -> None:
    file, metrics = written(tmp_path, segmentation_of(slices, **fields), slices)
    for metric, value in metrics.items():
        scores = case_scores(file, metric, value)
        assert scores is not None
        assert sorted(scores) == ["p009", "p010", "p011"]
        assert np.mean([*scores.values()]) == pytest.approx(value)
    assert case_scores(file, "dice_mean", metrics["dice_mean"] + 0.01) is None, "they are of another value"
    assert case_scores(file, "test/dice_mean", metrics["dice_mean"]) is None, "no case is of the test split"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "ordinal", "multi_label"])
def test_a_patient_s_score_is_what_a_metric_of_classes_would_lose_without_it(pictures, tmp_path, kind) -> None:
    file, metrics = written(tmp_path, classification_of(pictures, kind=kind), pictures, "test")
    known = {metric: case_scores(file, f"test/{metric}", value) for metric, value in metrics.items()}
    assert known["accuracy"] is not None
    assert known["score"] == known["accuracy"]
    for metric, scores in known.items():
        if scores is not None:
            assert np.mean([*scores.values()]) == pytest.approx(metrics[metric])


@pytest.mark.slow
def test_an_auc_s_scores_of_patients_have_delong_s_variance(tmp_path: Path) -> None:
    rng, number = np.random.default_rng(0), 40
    truth = np.arange(number) % 3 == 0
    drawn = 1 / (1 + np.exp(-rng.normal(truth * 1.0, 1)))
    names = np.array(["CT", "MR"])
    cases = {
        "case": [f"s{n}" for n in range(number)], "patient": [f"p{n:02d}" for n in range(number)],
        "true": names[truth.astype(int)].tolist(), "predicted": names[(drawn > 0.5).astype(int)].tolist(),
        "probability/CT": 1 - drawn, "probability/MR": drawn,
    }  # fmt: skip
    file = tmp_path / "cases.parquet"
    file.write_bytes(to_parquet("validation", cases))
    scores = case_scores(file, "auc", roc_auc_score(truth, drawn))
    assert scores is not None
    wins = (drawn[truth][:, None] > drawn[~truth]).astype(float)
    expected = wins.mean(1).var(ddof=1) / truth.sum() + wins.mean(0).var(ddof=1) / (~truth).sum()
    assert np.var([*scores.values()], ddof=1) / number == pytest.approx(expected, rel=0.1)


@pytest.mark.slow
def test_a_patient_s_score_is_what_a_metric_of_boxes_would_lose_without_it(tmp_path) -> None:
    rng, units = np.random.default_rng(0), {}
    for number in range(12):
        true = np.tile(rng.uniform(0, 20, (2, 2)), 2) + np.array([0, 0, 10, 10])
        seen = np.concatenate([true + rng.normal(0, 1, true.shape), true + 25])
        units[f"u-{number:02d}"] = rows_of(true, np.array([0, 1]), seen, np.array([0, 1, 0, 1]), rng.uniform(size=4))
    names, patients = ("mass", "nodule"), [f"p-{number // 3}" for number in range(12)]
    found = score_detections(units, names)
    file = tmp_path / "cases.parquet"
    file.write_bytes(to_parquet("validation", {"case": list(units), "patient": patients, **found.cases}))
    for metric in ("ap", "ap50", "ap50/nodule", "mfroc", "sensitivity_at_1"):
        scores, value = case_scores(file, metric, found.metrics[metric]), found.metrics[metric]
        assert scores is not None
        without = {
            patient: score_detections(
                {unit: rows for (unit, rows), own in zip(units.items(), patients, strict=True) if own != patient},
                names,
            ).metrics[metric]
            for patient in dict.fromkeys(patients)
        }
        mean = np.mean([*without.values()])
        assert scores == pytest.approx({name: value + 3 * (mean - other) for name, other in without.items()})
    assert case_scores(file, "ap50", 0.123) is None, "they are of another value"


def test_slices_of_a_patient_count_together_and_earlier_files_have_no_scores(slices, tmp_path) -> None:
    file = tmp_path / "cases.parquet"
    assert case_scores(file, "score", 0.5) is None
    cases = scored(segmentation_of(slices), slices).cases
    file.write_bytes(to_parquet("validation", cases))
    assert case_scores(file, "score", 0.5) is None, "a file of an earlier version names no patients"


def test_rows_are_paired_where_all_of_their_runs_were_judged_by_the_same_patients() -> None:
    rng = np.random.default_rng(0)
    runs = [dict(zip("abcdef", rng.normal(0.5, 0.1, 6).tolist(), strict=True)) for _ in range(4)]
    rows = [RowScores([float(np.mean([*run.values()])) for run in own], own) for own in (runs[:2], runs[2:])]
    paired = against(*rows)
    assert paired.num_cases == 6
    assert paired.interval is not None
    assert paired.difference == pytest.approx(np.mean(rows[0].values) - np.mean(rows[1].values))
    other = RowScores(rows[1].values, [runs[2], {**runs[3], "g": 0.1}])
    for apart in (other, RowScores(rows[1].values), RowScores(rows[1].values, [runs[2], None])):
        assert shared_cases([rows[0], apart]) is None
        over_runs = against(rows[0], apart)
        assert over_runs.num_cases is None
        assert over_runs.p is not None
    assert against(RowScores(rows[0].values[:1], runs[:1]), rows[1]).remark.startswith("needs 2 runs in each row")
