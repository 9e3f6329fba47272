"""Curves and scores of single labels: in a file, not among MLflow's metrics."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.direction import is_detail
from orchestrator.history import HISTORY, HistoryWriter, Tail
from orchestrator.results.run_cards import Folders
from orchestrator.results.server_cards import on_server
from orchestrator.runs.details import details_of
from orchestrator.runs.run import RESULT
from orchestrator.tracking.tracker import Tracker

SCORES = {"score": 0.5, "dice_mean": 0.5, "dice/liver": 0.75, "test/dice/liver": 0.25, "test/score": 0.25}


@pytest.mark.parametrize(
    ("metric", "of_label"),
    [
        ("loss", False),
        ("best/dice_mean", False),
        ("health/effective_rank", False),
        ("system/cpu_utilization_percentage", False),
        ("dice/liver", True),
        ("best/dice/liver", True),
        ("test/iou/spleen", True),
        ("mean_box/ap50", False),
    ],
)
def test_a_metric_of_a_single_label_is_a_detail(metric: str, of_label: bool) -> None:
    assert is_detail(metric) is of_label


@pytest.mark.slow
def test_what_mlflow_does_not_list_is_read_from_the_run_s_artifact(store: str, tmp_path: Path) -> None:
    """Hold that a comparison by a server has the scores and the curves that one by folders has."""
    tracker = Tracker(tmp_path / "tiny" / "finetune-1", store)
    tracker.start(tmp_path.name, "scratch: fine-tuning, seed 0", "key", {"kind": "finetune", "row": "scratch"})
    steps = [{"step": step, "loss": 1.0 - step / 4, "dice/liver": step / 4} for step in range(3)]
    report = {"history": steps, "usage": {"system/cpu_utilization_percentage": 50.0}}
    HistoryWriter(tracker.folder, "finetune").after_report(None, [report], None)
    details = details_of(tracker.folder, {"scores": SCORES})
    assert details is not None
    tracker.artifact(details)
    tracker.summary({"best/score": 0.5, "best/dice_mean": 0.5, "test/score": 0.25})
    (tracker.folder / RESULT).write_text(json.dumps({"scores": SCORES}))
    tracker.finish("FINISHED")
    assert tracker.flush(force=True) is None

    client = MlflowClient(store)
    assert tracker.run_id is not None
    assert sorted(client.get_run(tracker.run_id).data.metrics) == [
        "best/dice_mean", "best/score", "loss", "system/cpu_utilization_percentage", "test/score",
    ]  # fmt: skip
    far = on_server(store, tmp_path.name, tmp_path).source
    near = Folders([tmp_path])
    (own,), (other,) = near.cards(), far.cards()
    assert near.scores(own) == far.scores(other) == SCORES
    for metric in ("loss", "dice/liver"):
        assert near.curve(own, metric) == far.curve(other, metric)
    assert far.curve(other, "dice/liver") == ([1.0, 2.0, 3.0], [0.0, 0.25, 0.5])


def test_the_machine_s_measurements_are_at_the_last_step_of_a_report(tmp_path: Path) -> None:
    usage = {"system/cpu_utilization_percentage": 50.0}
    report = {"history": [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}], "usage": usage}
    HistoryWriter(tmp_path, "pretrain").after_report(None, [report], None)
    first, second = Tail(tmp_path / HISTORY).read()
    assert (len(first), second["system/cpu_utilization_percentage"]) == (4, 50.0)
    assert details_of(tmp_path, {}) is None
