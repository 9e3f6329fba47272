"""Sending: turn the lines of an outbox and of a history into requests to MLflow."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from orchestrator.direction import is_detail
from orchestrator.history import HISTORY, TIME, Once, Tail, metrics_of
from orchestrator.lock import alone
from orchestrator.tracking.answers import describe_experiment
from orchestrator.tracking.hindrance import FAULTS, hindrance_of
from orchestrator.tracking.models import MOST_DIGEST_CHARS, log_model
from orchestrator.tracking.opening import artifacts_of, client_of
from orchestrator.tracking.outbox import OUTBOX, Cursor, located

LOCK = "sending.lock"
MOST_PER_BATCH = 900  # MLflow takes at most 1000 metrics at once
MOST_PARAMS = 100
STEPS_AT_ONCE = 500
# Otherwise MLflow's page would open an experiment with its tools for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
MOST_NAME_CHARS = 250
STATE, RUNNING = "state", "running"
STATES = {"FINISHED": "done", "FAILED": "failed", "KILLED": "stopped"}
ALREADY_THERE = "RESOURCE_ALREADY_EXISTS"


class Sender:
    """Sends everything that a run's folder holds and MLflow lacks; ``refused`` lists what MLflow will never take."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self.client: MlflowClient | None = None
        self.cursor = Cursor()
        self.refused: list[str] = []

    def send(self) -> None:
        """Send all waiting lines while no other process sends from this folder; raise the error that prevents it."""
        with alone(self.folder / LOCK):
            self.cursor, self.client = Cursor.read(self.folder), client_of(self.uri)
            if self.cursor.run_id and self._starts_again() and not self._run_is_there():
                # MLflow lacks everything that was sent: another server was named, or the run was deleted.
                self.cursor = Cursor()
            self._send_outbox()
            self._send_steps()

    def _send_outbox(self) -> None:
        tail = Tail(self.folder / OUTBOX, self.cursor.offset)
        for line in tail.lines():
            if line["op"] == "start":
                self.cursor.run_id = self._start(line)
            if line["op"] == "finish" and self.cursor.run_id:
                self._send_steps()
            if self.cursor.run_id:  # else the folder was deleted while it was in use, and the start with it
                self._send(line)
            self.cursor.offset = tail.offset
            self.cursor.write(self.folder)

    def _starts_again(self) -> bool:
        """Return whether a process has begun the run anew since the last line was sent."""
        return any(line["op"] == "start" for line in Tail(self.folder / OUTBOX, self.cursor.offset).lines())

    def _start(self, line: dict[str, Any]) -> str:
        """Return the id of the run with the line's key; create the run if there is none."""
        experiment_id = self._experiment_id(line["experiment"])
        runs = self._mlflow.search_runs([experiment_id], f"tags.run_key = '{line['key']}'", max_results=1)
        if runs:
            self._mlflow.update_run(runs[0].info.run_id, status="RUNNING")
            self._mlflow.set_tag(runs[0].info.run_id, STATE, RUNNING)
            return runs[0].info.run_id
        tags = {"run_key": line["key"], STATE: RUNNING, **line["tags"]}
        if line["parent"] and (parent := self._parent(located(self.folder, line["parent"]))):
            tags["mlflow.parentRunId"] = parent
        return self._mlflow.create_run(experiment_id, run_name=line["name"], tags=tags).info.run_id

    def _parent(self, folder: Path) -> str | None:
        """Return the id of this run's parent, which is sent first; None if the parent's folder is gone."""
        if Cursor.read(folder).run_id is None and (folder / OUTBOX).exists():
            parent = Sender(folder, self.uri)
            parent.send()
            self.refused += parent.refused
        return Cursor.read(folder).run_id

    def _experiment_id(self, name: str) -> str:
        if found := self._mlflow.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self._mlflow.create_experiment(name, artifacts_of(self.uri, name), EXPERIMENT_TAGS)
        except MlflowException as error:
            found = self._mlflow.get_experiment_by_name(name)
            if found is None or error.error_code != ALREADY_THERE:
                raise
            return found.experiment_id  # another process was faster

    def _send(self, line: dict[str, Any]) -> None:
        self._offer(line["op"], lambda: _send(self._mlflow, self.folder, line, self._run_id))

    def _send_steps(self) -> None:
        """Send the steps that the history holds and MLflow lacks, some at a time."""
        tail = Tail(self.folder / HISTORY, self.cursor.history)
        new = Once(self.cursor.steps).new(tail.lines())
        while steps := list(islice(new, STEPS_AT_ONCE)):
            metrics = [
                Metric(accepted(name), value, line.get(TIME, 0), step)
                for step, line in steps
                for name, value in metrics_of(line).items()
                if not is_detail(name)
            ]
            self._offer("metrics", partial(_send_metrics, self._mlflow, metrics, self._run_id))
            self.cursor.history = tail.offset
            self.cursor.write(self.folder)
        if self.cursor.history < tail.offset:  # lines of steps that were sent before
            self.cursor.history = tail.offset
            self.cursor.write(self.folder)

    def _offer(self, what: str, request: Callable[[], None]) -> None:
        """Make a request; if MLflow would refuse it for ever, note that and go on with the next requests."""
        try:
            request()
        except FAULTS as error:
            hindrance = hindrance_of(error, self.uri)
            if not (hindrance.lasting and self._run_is_there()):
                raise
            self.refused.append(
                f"MLflow refused {what} of {self.folder.name}: {hindrance.words}; it is left out, the rest is sent"
            )

    def _run_is_there(self) -> bool:
        """Return whether MLflow still has the run: a deleted run refuses everything, and may be restored."""
        try:
            return self._mlflow.get_run(self._run_id).info.lifecycle_stage == LifecycleStage.ACTIVE
        except MlflowException as error:
            if hindrance_of(error, self.uri).lasting:
                return False
            raise

    @property
    def _mlflow(self) -> MlflowClient:
        assert self.client is not None, "opened before anything is sent"
        return self.client

    @property
    def _run_id(self) -> str:
        assert self.cursor.run_id is not None, "an outbox begins with its start"
        return self.cursor.run_id


def accepted(name: str) -> str:
    """Return the name of a metric or param in a form that MLflow takes: classes and regions can have any name."""
    parts = [re.sub(r"[^\w.\- :]", "_", part) for part in name.split("/")]
    return "/".join("_" * max(1, len(part)) if part in ("", ".", "..") else part for part in parts)[:MOST_NAME_CHARS]


def _send(client: MlflowClient, folder: Path, line: dict[str, Any], run_id: str) -> None:
    """Send one line of an outbox; its ``start`` has been sent already."""
    if line["op"] == "params":
        items = [Param(accepted(key), value) for key, value in line["params"].items()]
        for start in range(0, len(items), MOST_PARAMS):
            client.log_batch(run_id, params=items[start : start + MOST_PARAMS])
    elif line["op"] == "metrics":
        points = [(entry["step"], metrics_of(entry)) for entry in line["entries"]]
        _send_metrics(client, _metrics(points, line["timestamp"]), run_id)
    elif line["op"] == "summary":
        _send_metrics(client, _metrics([(0, line["values"])], line["timestamp"]), run_id)
    elif line["op"] == "artifact":
        client.log_artifact(run_id, str(located(folder, line["path"])), line["into"] or None)
    elif line["op"] == "dataset":
        digest = line["digest"][:MOST_DIGEST_CHARS]
        dataset = Dataset(line["name"], digest, "shards", json.dumps({"uri": line["source"]}))
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    elif line["op"] == "tags":
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in line["tags"].items()])
    elif line["op"] == "model":
        log_model(client, folder, line, run_id)
    elif line["op"] == "answers":
        describe_experiment(client, run_id)
    elif line["op"] == "finish":
        client.set_terminated(run_id, line["status"])
        if client.get_run(run_id).data.tags.get(STATE) == RUNNING:  # a sweep's trial has said more already
            client.set_tag(run_id, STATE, STATES[line["status"]])


def _metrics(points: Sequence[tuple[int, dict[str, float]]], timestamp: int) -> list[Metric]:
    return [
        Metric(accepted(name), value, timestamp, step) for step, values in points for name, value in values.items()
    ]


def _send_metrics(client: MlflowClient, metrics: Sequence[Metric], run_id: str) -> None:
    for start in range(0, len(metrics), MOST_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_PER_BATCH])
