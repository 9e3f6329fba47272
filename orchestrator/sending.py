"""Sending: what the lines of an outbox and of a history are to MLflow."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from orchestrator.claim import alone
from orchestrator.history import HISTORY, TIME, Once, Tail, metrics_of
from orchestrator.tracking import OUTBOX, Cursor

LOCK = "sending.lock"
REFUSED = "INVALID_PARAMETER_VALUE"
MOST_PER_BATCH = 900  # MLflow takes 1000 metrics at once
MOST_PARAMS = 100
STEPS_AT_ONCE = 500
# MLflow's page would otherwise open an experiment among its tools for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
MOST_DIGEST_CHARS = 36


class Sender:
    """Sends what a run's folder holds and MLflow does not; ``refused`` says what MLflow would never take."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self.refused: list[str] = []

    def send(self) -> None:
        """Send all that waits, while no other process sends from this folder."""
        with alone(self.folder / LOCK):
            self.cursor, self.client = Cursor.read(self.folder), MlflowClient(self.uri)
            self._send_outbox()
            self._send_steps()

    def _send_outbox(self) -> None:
        tail = Tail(self.folder / OUTBOX, self.cursor.offset)
        for line in tail.lines():
            if line["op"] == "start" and self._begins_elsewhere(_start(self.client, line)):
                # MLflow does not have what was sent before: another server was named, or the run was deleted.
                self._send_outbox()
                return
            if line["op"] == "finish":
                self._send_steps()
            self._send(line)
            self.cursor.offset = tail.offset
            self.cursor.write(self.folder)

    def _begins_elsewhere(self, run_id: str) -> bool:
        """Note MLflow's run; tell whether lines were sent to another one before."""
        before, self.cursor.run_id = self.cursor.run_id, run_id
        if before in (None, run_id):
            return False
        self.cursor = Cursor(run_id)
        return True

    def _send(self, line: dict[str, Any]) -> None:
        try:
            _send(self.client, line, self.cursor.run_id)
        except MlflowException as error:
            if error.error_code != REFUSED:
                raise
            # It would be refused for ever and keep back all that waits behind it.
            self.refused.append(f"MLflow refused {line['op']}: {str(error).splitlines()[0]}")

    def _send_steps(self) -> None:
        """Send the steps that the history holds and MLflow does not, some at a time."""
        tail = Tail(self.folder / HISTORY, self.cursor.history)
        new = Once(self.cursor.steps).new(tail.lines())
        while steps := list(islice(new, STEPS_AT_ONCE)):
            metrics = [
                Metric(name, value, line.get(TIME, 0), step)
                for step, line in steps
                for name, value in metrics_of(line).items()
            ]
            _send_metrics(self.client, metrics, self.cursor.run_id)
            self.cursor.history = tail.offset
            self.cursor.write(self.folder)
        if self.cursor.history < tail.offset:  # lines of steps that were sent before
            self.cursor.history = tail.offset
            self.cursor.write(self.folder)


def _send(client: MlflowClient, line: dict[str, Any], run_id: str | None) -> None:
    """Do one line of the outbox; its ``start`` is done already."""
    assert run_id is not None, "an outbox begins with its start"
    if line["op"] == "params":
        items = [Param(key, value) for key, value in line["params"].items()]
        for start in range(0, len(items), MOST_PARAMS):
            client.log_batch(run_id, params=items[start : start + MOST_PARAMS])
    elif line["op"] == "metrics":
        points = [(entry["step"], metrics_of(entry)) for entry in line["entries"]]
        _send_metrics(client, _metrics(points, line["timestamp"]), run_id)
    elif line["op"] == "summary":
        _send_metrics(client, _metrics([(0, line["values"])], line["timestamp"]), run_id)
    elif line["op"] == "artifact":
        client.log_artifact(run_id, line["path"], line["into"] or None)
    elif line["op"] == "dataset":
        digest = line["digest"][:MOST_DIGEST_CHARS]
        dataset = Dataset(line["name"], digest, "shards", json.dumps({"uri": line["source"]}))
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    elif line["op"] == "tags":
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in line["tags"].items()])
    elif line["op"] == "finish":
        client.set_terminated(run_id, line["status"])


def _start(client: MlflowClient, line: dict[str, Any]) -> str:
    """Return the id of the run that has the line's key; create it where there is none."""
    experiment_id = _experiment_id(client, line["experiment"])
    runs = client.search_runs([experiment_id], f"tags.run_key = '{line['key']}'", max_results=1)
    if runs:
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0].info.run_id
    tags = {"run_key": line["key"], **line["tags"]}
    if line["parent"]:
        parent = Cursor.read(Path(line["parent"])).run_id
        tags["mlflow.parentRunId"] = parent
    return client.create_run(experiment_id, run_name=line["name"], tags=tags).info.run_id


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    embedded = client.tracking_uri.removeprefix("sqlite:///")
    # The embedded store would put artifacts into the folder where a command happens to run.
    place = None if "://" in embedded else (Path(embedded).parent / "artifacts" / name).as_uri()
    return client.create_experiment(name, artifact_location=place, tags=EXPERIMENT_TAGS)


def _metrics(points: Sequence[tuple[int, dict[str, float]]], timestamp: int) -> list[Metric]:
    return [Metric(name, value, timestamp, step) for step, values in points for name, value in values.items()]


def _send_metrics(client: MlflowClient, metrics: Sequence[Metric], run_id: str | None) -> None:
    assert run_id is not None, "an outbox begins with its start"
    for start in range(0, len(metrics), MOST_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_PER_BATCH])
