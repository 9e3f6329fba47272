"""How a training ends: a signal ends a real process, and the next process continues from there.

A cluster's scheduler ends a job by sending SIGTERM to all of its processes, Ray's among them.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from orchestrator import stop
from orchestrator.cluster import connection
from orchestrator.config.files import resolve
from orchestrator.history import Tail, steps
from orchestrator.lock import claimed
from orchestrator.runs.abandoned import closing_abandoned
from orchestrator.tracking.store import default_uri
from orchestrator.tracking.tracker import Tracker
from tests import clusters
from tests.experiments import tiny_experiment
from tests.points import assert_points_equal_history
from tests.shardsets import write_slices
from tests.waiting import HEARING, wait_for

HEARD = "asked to stop (Ctrl-C)"
ENDS_WITHIN_S, LONGER_THAN_ANY_TEST = 120.0, 100_000


def pretraining(folder: Path) -> list[str]:
    """Write an experiment whose steps are many and short, and return the command that pretrains it."""
    (folder / "slices").mkdir(exist_ok=True)
    shards = write_slices(folder / "slices")
    training = {"report_every_steps": 2, "checkpoint_every_steps": LONGER_THAN_ANY_TEST}
    tree = tiny_experiment("ends", shards, folder / "runs", LONGER_THAN_ANY_TEST, training=training)
    (folder / "ends.yaml").write_text(yaml.safe_dump(tree))
    return [*HEARING, sys.executable, "-m", "orchestrator.cli", "pretrain", str(folder / "ends.yaml")]


def end(command: list[str], home: Path, tell: Callable[[subprocess.Popen[Any]], object], into: int | IO[Any]) -> int:
    """Run a command in a session of its own, tell it to end once it has trained some new steps; return its code."""
    before = history_size(home)
    job = subprocess.Popen(command, cwd=clusters.ROOT, start_new_session=True, stdin=into, stdout=into, stderr=into)
    try:
        wait_for(lambda: history_size(home) > before + 2000, job)
        ours = psutil.Process(job.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in ours)
        tell(job)
        code = job.wait(ENDS_WITHIN_S)
        assert psutil.wait_procs(ours, 60)[1] == [], "all that it started has ended with it"
        return code
    finally:
        if job.poll() is None:
            job.kill()


def history_size(home: Path) -> int:
    return sum(path.stat().st_size for path in home.glob("*/*/history.jsonl"))


def end_everything(job: subprocess.Popen[Any]) -> None:
    for process in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
        process.send_signal(signal.SIGTERM)


def press_ctrl_c_twice(log: Path, job: subprocess.Popen[Any]) -> None:
    """Press it as a terminal does, for the whole group; before the first is heard, two signals would be one."""
    before = log.read_text().count(HEARD)
    os.killpg(job.pid, signal.SIGINT)
    wait_for(lambda: log.read_text().count(HEARD) > before, job)
    os.killpg(job.pid, signal.SIGINT)


def told(home: Path) -> tuple[str, int]:
    """Return the status of the run in MLflow, and the steps of its newest checkpoint."""
    (folder,) = home.glob("*/pretrain-*")
    assert_points_equal_history(folder, steps=len(steps(folder, "pretrain")))
    client = MlflowClient(default_uri(home))
    (experiment,) = [one for one in client.search_experiments() if one.name == "ends"]
    (run,) = client.search_runs([experiment.experiment_id])
    saved = sorted((folder / "checkpoints" / "pretrain").glob("step_*"))
    return run.info.status, int(saved[-1].name.removeprefix("step_")) if saved else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_way_to_end_leaves_a_checkpoint_that_the_same_command_goes_on_from_and_mlflow_complete(
    tmp_path: Path,
) -> None:
    command, home, log = pretraining(tmp_path), tmp_path / "runs", (tmp_path / "log").open("w+")

    assert end(command, home, end_everything, log) == 143
    status, first = told(home)
    assert (status, first > 0) == ("KILLED", True)

    assert end(command, home, lambda job: os.killpg(job.pid, signal.SIGINT), log) == 130
    status, second = told(home)
    assert (status, second > first) == ("KILLED", True)

    assert end(command, home, partial(press_ctrl_c_twice, tmp_path / "log"), log) == 130
    assert told(home)[0] == "KILLED"

    log.seek(0)
    said = log.read()
    for by, again in (("SIGTERM", "Ctrl-C"), ("Ctrl-C", "Ctrl-C once more")):
        assert f"asked to stop ({by}): saving a checkpoint, then ending; {again} ends at once, without one" in said
    for step in (first, second):
        assert f"stopped after step {step} of {LONGER_THAN_ANY_TEST}, as asked; the same command goes on" in said
        assert f"goes on from step {step} of {LONGER_THAN_ANY_TEST}, checkpoint step_{step:09d}" in said
    assert "pretrain: interrupted; the same command goes on from what was saved last" in said
    assert "Traceback" not in said
    assert not re.search(r"^\x1b", said, re.MULTILINE), "what Ray remarks has no colour in a log"


@pytest.mark.slow
def test_runs_that_an_interruption_leaves_open_are_closed_but_not_those_that_another_process_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "leave", lambda: None)  # this process shares its Ray with the tests that follow
    experiment = resolve(tiny_experiment("ends", "shards", tmp_path, 8))
    uri = default_uri(tmp_path)
    trackers = {name: Tracker(tmp_path / "ends" / name, uri) for name in ("open", "done", "taken")}
    for name, tracker in trackers.items():
        tracker.start("ends", name, name)
        if name == "done":
            tracker.finish("FINISHED")
        tracker.flush(force=True)
    with (
        claimed(tmp_path / "ends" / "taken"),
        pytest.raises(stop.Interruption),
        closing_abandoned(experiment),
    ):
        raise stop.Interruption
    client = MlflowClient(uri)
    status = {name: client.get_run(str(tracker.run_id)).info.status for name, tracker in trackers.items()}
    assert status == {"open": "KILLED", "done": "FINISHED", "taken": "RUNNING"}
    assert [line["op"] for line in Tail(tmp_path / "ends" / "open" / "outbox.jsonl").read()] == ["start", "finish"]
