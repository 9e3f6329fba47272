"""Sending: what each line of an outbox is to MLflow."""

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from orchestrator.tracking import CURSOR

MOST_PER_BATCH = 900  # MLflow takes 1000 metrics at once
MOST_PARAMS = 100
# MLflow's page would otherwise open an experiment among its tools for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
MOST_DIGEST_CHARS = 36


def send(client: MlflowClient, line: dict[str, Any], run_id: str | None) -> str:
    """Do one line of the outbox; return the run's id."""
    if line["op"] == "start":
        return _start(client, line).info.run_id
    assert run_id is not None, "an outbox begins with its start"
    if line["op"] == "params":
        items = [Param(key, value) for key, value in line["params"].items()]
        for start in range(0, len(items), MOST_PARAMS):
            client.log_batch(run_id, params=items[start : start + MOST_PARAMS])
    elif line["op"] == "metrics":
        _send_metrics(client, line, run_id)
    elif line["op"] == "artifact":
        client.log_artifact(run_id, line["path"], line["into"] or None)
    elif line["op"] == "dataset":
        digest = line["digest"][:MOST_DIGEST_CHARS]
        dataset = Dataset(line["name"], digest, "shards", json.dumps({"uri": line["source"]}))
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    elif line["op"] == "tags":
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in line["tags"].items()])
    else:
        client.set_terminated(run_id, line["status"])
    return run_id


def _start(client: MlflowClient, line: dict[str, Any]) -> Run:
    experiment_id = _experiment_id(client, line["experiment"])
    runs = client.search_runs([experiment_id], f"tags.run_key = '{line['key']}'", max_results=1)
    if runs:
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0]
    tags = {"run_key": line["key"], **line["tags"]}
    if line["parent"]:
        parent = json.loads((Path(line["parent"]) / CURSOR).read_text())["run_id"]
        tags["mlflow.parentRunId"] = parent
    return client.create_run(experiment_id, run_name=line["name"], tags=tags)


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    embedded = client.tracking_uri.removeprefix("sqlite:///")
    # The embedded store would put artifacts into the folder where a command happens to run.
    place = None if "://" in embedded else (Path(embedded).parent / "artifacts" / name).as_uri()
    return client.create_experiment(name, artifact_location=place, tags=EXPERIMENT_TAGS)


def _send_metrics(client: MlflowClient, line: dict[str, Any], run_id: str) -> None:
    metrics = [
        Metric(line["prefix"] + name, float(value), line["timestamp"], int(entry["step"]))
        for entry in line["entries"]
        for name, value in entry.items()
        if name != "step" and isinstance(value, int | float)
    ]
    for start in range(0, len(metrics), MOST_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_PER_BATCH])
