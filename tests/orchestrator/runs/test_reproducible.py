"""The same samples and losses however a run is killed, spread, fed or stored (CPU, fp32): real Ray, kills and S3."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
import requests
import yaml

from orchestrator.cli import main
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.history import HISTORY, Tail, steps
from orchestrator.results.ui import SERVER
from orchestrator.runs.pretrain import pretrain
from orchestrator.tracking.outbox import waiting
from orchestrator.tracking.tracker import Tracker
from orchestrator.training.resume import DamageError, StageCheckpoints, read
from tests import clusters
from tests.buckets import served
from tests.experiments import ONE_READER, tiny_experiment
from tests.full_disk import train_on_full_disk
from tests.points import assert_points_equal_history
from tests.shardsets import write_slices
from tests.waiting import kill_tree, wait_for, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# 36 training slices in batches of 8: epochs end in the middle of a step, checkpoints in the middle of an epoch.
TOTAL_STEPS = 24
KILL_AFTER_STEP = 9


def experiment_tree(shards: str, home: Path) -> dict[str, Any]:
    training = {"report_every_steps": 1, "checkpoint_every_steps": 4}
    return tiny_experiment("restart", shards, home, TOTAL_STEPS, training=training, **ONE_READER)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"))


def run(shards: str, home: Path, *overrides: str) -> list[dict[str, Any]]:
    """Run the pretraining to its end and return its steps."""
    done = pretrain(experiment(shards, home, *overrides))
    return steps(done.folder, "pretrain")


def experiment(shards: str, home: Path, *overrides: str) -> Experiment:
    return resolve(experiment_tree(shards, home), overrides)


def trace(entries: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    return [(entry["step"], entry["samples"], entry["loss"]) for entry in entries]


@pytest.fixture(scope="module")
def finished(shards: str, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The home of a run that nothing disturbed."""
    home = tmp_path_factory.mktemp("undisturbed")
    run(shards, home)
    return home


@pytest.fixture(scope="module")
def undisturbed(shards: str, finished: Path) -> list[dict[str, Any]]:
    return run(shards, finished)


def kill_a_train_worker() -> int:
    """Send SIGKILL to one Ray Train worker among this process's own descendants; return its process id."""
    workers = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [process.info["name"] or ""])
    ]
    own = [process for process in workers if is_descendant(process)]
    assert own, "a worker trains at this moment"
    own[0].kill()
    return own[0].pid


def is_descendant(process: psutil.Process) -> bool:
    """Tell whether this test's Ray started a process: other clusters on the machine are left alone."""
    try:
        return os.getpid() in [parent.pid for parent in process.parents()]
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def mlflow_server(uri: str, folder: Path) -> Iterator[None]:
    """Run MLflow's server at an address while the body runs."""
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--port", uri.rpartition(":")[2], "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    with (folder / "log").open("w") as log:
        environment = {**os.environ, **SERVER}
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: answers(uri), server)
        yield
    finally:
        kill_tree(server)


def answers(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=5).ok
    except requests.RequestException:
        return False


def test_a_killed_worker_and_an_absent_server_leave_no_trace_in_samples_losses_or_mlflow(
    shards: str, undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is killed before the report of its newest checkpoint is read, which is lost with it."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    result: list[list[dict[str, Any]]] = []
    absent = f"http://127.0.0.1:{free_port()}"
    thread = threading.Thread(
        target=lambda: result.append(run(shards, tmp_path, f"tracking.uri={absent}")), daemon=True
    )
    thread.start()
    unread = wait_for(lambda: unread_checkpoint(tmp_path))
    kill_a_train_worker()
    (history,) = tmp_path.glob(f"**/{HISTORY}")
    assert unread > len(steps(history.parent, "pretrain"))
    thread.join(timeout=500)
    assert not thread.is_alive()
    assert trace(result[0]) == trace(undisturbed)
    assert set(trace(Tail(history).read())) == set(trace(undisturbed))
    assert waiting(tmp_path) == [history.parent]
    with mlflow_server(absent, tmp_path / "server"):
        assert Tracker(history.parent, absent).flush(force=True) is None
        assert_points_equal_history(history.parent, absent, steps=TOTAL_STEPS)


def unread_checkpoint(home: Path) -> int | None:
    """Return the steps of a run's newest whole checkpoint if Ray Train's controller has not read their report."""
    for history in home.glob(f"**/{HISTORY}"):
        saved = StageCheckpoints(str(history.parent / "checkpoints" / "pretrain")).step()
        if saved > max(len(steps(history.parent, "pretrain")), KILL_AFTER_STEP):
            return saved
    return None


def test_a_killed_job_started_again_leaves_no_trace_though_its_newest_checkpoint_and_its_history_are_cut_off(
    shards: str, undisturbed: list[dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "restart.yaml"
    file.write_text(yaml.safe_dump({**experiment_tree(shards, tmp_path / "home"), "resources": {"readers": 0}}))
    command = [sys.executable, "-m", "orchestrator.cli", "pretrain", str(file)]
    job = subprocess.Popen(command, start_new_session=True)
    history = wait_for_step(tmp_path / "home", KILL_AFTER_STEP, job)
    kill_tree(job)
    assert len(steps(history.parent, "pretrain")) < TOTAL_STEPS
    *_, before, newest = whole_checkpoints(history.parent / "checkpoints" / "pretrain")
    os.truncate(newest / "method.safetensors", 1000)
    with history.open("a") as torn:
        torn.write('{"stage": "pre')
    done = int(before.name.removeprefix("step_"))
    assert main(command[3:]) == 0
    said = "".join(capfd.readouterr().err.split("\n"))
    assert said.count(f"{history} ended in the middle of a line") == 1
    assert f"checkpoint {newest.name}: method.safetensors has 1000 bytes" in said
    assert f"goes on from step {done} of {TOTAL_STEPS}, checkpoint {before.name}" in said
    assert trace(steps(history.parent, "pretrain")) == trace(undisturbed)
    assert_points_equal_history(history.parent, steps=TOTAL_STEPS)


def whole_checkpoints(stage: Path) -> list[Path]:
    """Return a stage's checkpoints in order, without one in whose writing the job was killed."""
    whole = []
    for folder in sorted(stage.glob("step_*")):
        with suppress(DamageError):
            read(str(folder))
            whole.append(folder)
    return whole


@pytest.mark.soak
def test_a_full_disk_loses_no_step_in_the_history_or_in_mlflow(
    shards: str, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    file, home = tmp_path / "disk.yaml", tmp_path / "disk"
    tree = experiment_tree(shards, home)
    tree["resources"] = {"max_failures": 0, "readers": 0}
    file.write_text(yaml.safe_dump(tree))
    seen = train_on_full_disk(file, home, KILL_AFTER_STEP, timeout=800)
    assert seen.exit_code == 1
    assert seen.reason in seen.said
    assert KILL_AFTER_STEP < len(seen.before) < TOTAL_STEPS
    assert trace(seen.after) == trace(undisturbed)


@pytest.mark.soak
def test_a_worker_on_each_of_two_nodes_with_a_bucket_sees_the_samples_and_the_losses_of_one_worker(
    shards: str, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    file, home = tmp_path / "nodes.yaml", tmp_path / "home"
    with served() as bucket:
        tree = experiment_tree(bucket.upload(Path(shards), "shards"), home)
        # They do not fit on a node of four CPUs.
        tree["resources"] = {"workers": 2, "cpus_per_worker": 3, "reader_resource": "reader"}
        tree["resources"]["storage"] = f"{bucket.uri}/checkpoints"
        file.write_text(yaml.safe_dump(tree))
        with clusters.nodes(4, 4, environment=bucket.environment) as environment:
            command = [sys.executable, "-m", "orchestrator.cli", "pretrain", str(file)]
            done = subprocess.run(
                command, cwd=clusters.ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
            )
        assert done.returncode == 0, done.stderr
        saved = {key.split("/")[3] for key in bucket.keys("checkpoints") if key.count("/") > 3}
    (history,) = home.glob(f"**/{HISTORY}")
    found = steps(history.parent, "pretrain")
    assert [entry["samples"] for entry in found] == [entry["samples"] for entry in undisturbed]
    # Later losses drift apart: sums over two ranks round differently, and each step of this tiny net amplifies that.
    losses, expected = ([entry["loss"] for entry in part[:2]] for part in (found, undisturbed))
    assert losses == pytest.approx(expected, abs=2e-4)
    # A report after each step, for which Ray Train would have every one of them wait for 2 s.
    assert median(8 / entry["samples_per_s"] for entry in found) < 1.5
    assert {f"step_{step:09d}" for step in (TOTAL_STEPS - 4, TOTAL_STEPS)} <= saved


def test_a_finished_run_is_returned_without_training(shards: str, finished: Path) -> None:
    (history,) = finished.glob(f"**/{HISTORY}")
    before = history.read_bytes()
    again = pretrain(experiment(shards, finished))
    assert again.folder == history.parent
    assert Path(again.encoder, "encoder.safetensors").is_file()
    assert history.read_bytes() == before
    assert_points_equal_history(history.parent, steps=TOTAL_STEPS)
