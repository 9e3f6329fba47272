"""Details: the curves and scores of single labels and classes, as a file beside the few metrics that MLflow lists.

MLflow's pages draw a chart for each metric of each run, and become slow with many.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from orchestrator.direction import is_detail
from orchestrator.history import HISTORY, Once, Tail, metrics_of

DETAILS = "details.parquet"
SCHEMA = pa.schema([("metric", pa.string()), ("step", pa.int64()), ("value", pa.float64())])


def details_of(folder: Path, result: Mapping[str, Any]) -> Path | None:
    """Write what a run's history and result know of single labels and return the file; None if they know nothing.

    A row is a metric at a step, from 1. A score of the result has no step.
    """
    lines = Tail(folder / HISTORY).lines() if (folder / HISTORY).exists() else ()
    rows: list[tuple[str, int | None, float]] = [
        (name, step + 1, value)
        for step, line in Once().new(lines)
        for name, value in metrics_of(line).items()
        if is_detail(name)
    ]
    rows += [(name, None, value) for name, value in result.get("scores", {}).items() if is_detail(name)]
    if not rows:
        return None
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / DETAILS)
    return folder / DETAILS


def detailed_scores(file: Path) -> dict[str, float]:
    """Return the scores of single labels in a file of details."""
    return {row["metric"]: row["value"] for row in pq.read_table(file).to_pylist() if row["step"] is None}


def detailed_curve(file: Path, metric: str) -> tuple[list[float], list[float]]:
    """Return the steps and values of a metric in a file of details."""
    rows = [row for row in pq.read_table(file).to_pylist() if row["metric"] == metric and row["step"] is not None]
    return [float(row["step"]) for row in rows], [row["value"] for row in rows]
