"""Points: MLflow's metrics of a run beside the history that the run wrote, read by code of its own."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient

from orchestrator.history import HISTORY
from orchestrator.tracking.outbox import CURSOR
from orchestrator.tracking.store import default_uri

Points = Mapping[str, Sequence[tuple[int, float]]]
SUMMARY = "best/"
LABELLED = ("dice", "iou", "auc", "f1", "recall", "precision", "ap50", "accuracy", "sensitivity", "specificity")


def assert_points_equal_history(folder: Path, uri: str | None = None, steps: int | None = None) -> None:
    """Assert that MLflow has each step of a run's history once, with its values, and each summary once.

    ``uri`` is by default the store of the home that the run's folder lies in; ``steps`` is how many there must be.
    """
    written, found = points_of_history(folder), points_of_mlflow(folder, uri)
    summaries = {name: points for name, points in found.items() if name.startswith(SUMMARY)}
    curves = {name: points for name, points in found.items() if name not in summaries}
    assert sorted(curves) == sorted(written)
    for name, points in written.items():
        assert curves[name] == points, f"{name}: MLflow has {len(curves[name])} points, the history {len(points)}"
    assert all(len(points) == 1 for points in summaries.values()), summaries
    if steps is not None:
        assert [step for step, _ in written["loss"]] == list(range(steps))


def points_of_history(folder: Path) -> Points:
    """Return the points of every metric, but of no label: the first line of each step, stages one after another."""
    stages: dict[str, dict[int, dict[str, float]]] = {}
    for text in (folder / HISTORY).read_text().splitlines():
        line = json.loads(text)
        if "step" in line:
            stages.setdefault(line["stage"], {}).setdefault(line["step"], line)
    points: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    before = 0
    for lines in stages.values():
        for step, line in sorted(lines.items()):
            for name, value in line.items():
                of_label = "/" in name and name.split("/")[0] in LABELLED
                if type(value) in (int, float) and name not in ("step", "time_ms") and not of_label:
                    points[name].append((before + step, float(value)))
        before += max(lines) + 1
    return points


def points_of_mlflow(folder: Path, uri: str | None = None) -> Points:
    """Return every metric's steps and values as MLflow has them, those that it has twice twice."""
    client = MlflowClient(uri or default_uri(folder.parents[1]))
    run_id = json.loads((folder / CURSOR).read_text())["run_id"]
    names = client.get_run(run_id).data.metrics
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name)) for name in names
    }
