"""Pages: addresses of MLflow's own pages that open on the runs, the metric and the order of a comparison."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError
from urllib.request import urlopen

from mlflow import MlflowClient

from orchestrator.direction import direction_of
from orchestrator.tracking.store import hide_password, sqlite_file

LOCAL = "http://127.0.0.1:5000"  # where `raydiology ui` serves a home's store
ANSWERS_WITHIN_S = 1.0
SHARED_VIEW = "mlflow.sharedViewState."  # prefix of a view's key in the tags of its experiment
MOST_TAG_CHARS = 5000
# Beside the score, where a person looks at the list of runs.
COLUMNS = ("tags.`row`", "tags.`seed`", "tags.`state`")
MOST_FIELDS = 4
MOST_RUNS = 100
SECTION = "raydiology"


@dataclass(frozen=True)
class MlflowRuns:
    """Where MLflow holds some runs: its address or store, and the ids of their experiment and of the runs."""

    uri: str
    experiment_id: str
    run_ids: tuple[str, ...]

    @property
    def server(self) -> str:
        """The address that a browser opens."""
        return hide_password(self.uri).rstrip("/") if self.uri.startswith("http") else LOCAL

    @property
    def home(self) -> Path | None:
        """The home whose store `raydiology ui` must serve; None if there is a server."""
        file = sqlite_file(self.uri)
        return file.parent if file else None


def publish(known: MlflowRuns, key: str, view: dict[str, Any], mode: Literal["CHART", "TABLE"] = "CHART") -> str:
    """Store a view in MLflow, whose page finds it by its key; return the page's address."""
    MlflowClient(known.uri).set_experiment_tag(known.experiment_id, f"{SHARED_VIEW}{key}", json.dumps(view))
    runs = f"{known.server}/#/experiments/{known.experiment_id}/runs"
    return f"{runs}?workflowType=machine_learning&compareRunsMode={mode}&viewStateShareKey={key}"


def listing_of(metrics: Sequence[str]) -> dict[str, Any]:
    """Describe the list of an experiment's runs, the newest first, with their scores, rows, seeds and states."""
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": [*(f"metrics.`{metric}`" for metric in metrics), *COLUMNS],
    }


def view_of(known: MlflowRuns, kind: str, metric: str, curve: str, fields: Sequence[str]) -> dict[str, Any]:
    """Describe charts of runs as MLflow's page stores them: bars of a metric, its curve, parallel coordinates.

    The runs are listed from best to worst. ``curve`` is the metric's name while a run trains, and ``fields`` are the
    params in which the runs differ.
    """
    chart = {"metricSectionId": SECTION, "isGenerated": False, "deleted": False, "runsCountToCompare": MOST_RUNS}
    lines = {"selectedMetricKeys": [curve], "xAxisKey": "step", "lineSmoothness": 0, "scaleType": "linear"}
    axes = {"selectedParams": list(fields)[:MOST_FIELDS], "selectedMetrics": [metric], "showAllRuns": True}
    section = {"uuid": SECTION, "name": metric, "display": True, "isReordered": True}
    names = "|".join(map(re.escape, dict.fromkeys((metric, curve))))
    view = {
        "searchFilter": _runs(known),
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": direction_of(metric) == "min",
        "selectedColumns": [f"metrics.`{metric}`", *COLUMNS],
        "compareRunCharts": [
            {**chart, "type": "BAR", "uuid": f"{SECTION}-bars", "metricKey": metric},
            {**chart, "type": "LINE", "uuid": f"{SECTION}-curve", "metricKey": curve, **lines},
            {**chart, "type": "PARALLEL", "uuid": f"{SECTION}-fields", **axes},
        ],
        "compareRunSections": [{**section, "deleted": False, "isGenerated": False}],
        "chartsSearchFilter": f"^({names}|Parallel Coordinates)$",
    }
    if len(json.dumps(view)) > MOST_TAG_CHARS:
        view["searchFilter"] = f"tags.kind = '{kind}'"
    return view


def is_served(address: str) -> bool:
    """Return whether something answers at an address."""
    try:
        with urlopen(address, timeout=ANSWERS_WITHIN_S):
            return True
    except (URLError, TimeoutError):
        return False


def _runs(known: MlflowRuns) -> str:
    ids = ", ".join(f"'{run_id}'" for run_id in known.run_ids)
    return f"attributes.run_id IN ({ids})"
