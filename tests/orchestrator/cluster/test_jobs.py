"""Jobs: what travels, what is refused, and a real job on a separately started Ray that requires a token."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.cluster import jobs
from orchestrator.cluster.jobs import SubmitError
from orchestrator.cluster.package import package_of
from orchestrator.commands import console
from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError
from orchestrator.history import Tail
from orchestrator.ingest.request import IngestConfig
from orchestrator.provenance import COMMIT_VARIABLE, JOB_VARIABLE, git_commit, in_job
from tests import clusters
from tests.experiments import ONE_READER, tiny_experiment
from tests.points import assert_points_equal_history
from tests.shardsets import write_slices
from tests.waiting import wait_for, wait_for_step

TOKEN = "the-token-of-the-test-cluster"
TOTAL_STEPS = 40  # more than pass while a line of the output comes and a stop goes
STOP_AFTER_STEP = 3

Started = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hide this machine's token; return the new home."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def checkout(folder: Path) -> Path:
    """Copy the code as a person's checkout, which is not in git."""
    for name in ("data", "methods", "orchestrator", "experiments"):
        shutil.copytree(clusters.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "cluster.yaml", ".gitignore", ".rayignore"):
        shutil.copy(clusters.ROOT / name, folder / name)
    return folder


@pytest.mark.slow
def test_too_large_a_working_directory_is_refused_with_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkout(tmp_path / "checkout")
    (folder / "orchestrator" / "weights.py").write_bytes(os.urandom(3 * 2**20))
    monkeypatch.setattr(jobs, "GCS_STORAGE_MAX_SIZE", 2 * 2**20)
    with pytest.raises(
        SubmitError, match=r"expected less than 2; the largest are orchestrator/weights\.py \(3 MiB\)"
    ):
        jobs.pack(package_of(folder), tmp_path / "package.zip")


def test_the_token_is_found_where_ray_finds_it(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.token() is None
    (no_token / ".ray").mkdir()
    (no_token / ".ray" / "auth_token").write_text("from-home\n")
    assert jobs.token() == "from-home"
    (no_token / "token").write_text("from-path\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(no_token / "token"))
    assert jobs.token() == "from-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    assert jobs.token() == "from-variable"


def test_a_cluster_that_does_not_answer_is_refused_in_words() -> None:
    with pytest.raises(SubmitError, match=r"cluster http://127\.0\.0\.1:9: Failed to connect.*ray dashboard"):
        jobs.connect("http://127.0.0.1:9")
    with pytest.raises(SubmitError, match=r"address ray://head:10001: expected the dashboard's"):
        jobs.connect("ray://head:10001")


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"working_dir": "."}, "Raydiology itself sets working_dir"),
        ({"env_vars": {"OMP_NUM_THREADS": "4"}}, r"Raydiology itself sets env_vars\.OMP_NUM_THREADS"),
        (["pip"], "expected a mapping"),
    ],
)
def test_a_runtime_environment_may_not_set_what_raydiology_sets(tree: Any, named: str, tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SubmitError, match=named):
        jobs.read_runtime_env(str(tmp_path / "env.yaml"))


def test_relative_folders_are_refused_in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree = experiment("shards/set", tmp_path)
    assert resolve(tree).data.shards == str(Path("shards/set").absolute())
    monkeypatch.setenv(JOB_VARIABLE, "1")
    with pytest.raises(ConfigError, match=r"data\.shards: shards/set is relative.*which the cluster deletes; give"):
        resolve(tree)
    with pytest.raises(ConfigError, match=r"home: runs is relative"):
        resolve({name: value for name, value in tree.items() if name != "home"}, ["data.shards=s3://bucket/set"])
    with pytest.raises(ValueError, match="shards/out is relative"):
        IngestConfig(source="s3://bucket/scans", layout="volumes", recipe="ct_abdomen_slices", out="shards/out")


def test_a_job_knows_the_commit_that_it_was_submitted_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert git_commit(tmp_path) == "unknown"
    monkeypatch.setenv(COMMIT_VARIABLE, "0123abc")
    assert git_commit() == "0123abc"


@pytest.mark.parametrize(
    ("status", "exit_code", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_a_job_s_exit_code_is_its_command_s(status: str, exit_code: int | None, code: int) -> None:
    assert jobs.ClusterJob("id", status, "pretrain x.yaml", None, None, exit_code, "").code == code


def experiment(shards: str, home: Path) -> dict[str, Any]:
    training = {"report_every_steps": 1, "checkpoint_every_steps": 1000}
    return tiny_experiment("job", shards, home, TOTAL_STEPS, training=training, **ONE_READER)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The dashboard of a cluster that asks for ``TOKEN``."""
    with clusters.head(8, TOKEN) as (address, _):
        yield address


@pytest.fixture
def with_token(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


@pytest.fixture
def started() -> Iterator[Started]:
    """Note a process that a test starts; it is killed where the test leaves it running."""
    processes: list[subprocess.Popen[bytes]] = []

    def note(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        processes.append(process)
        return process

    yield note
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_the_token_nothing_is_submitted_or_shown(
    cluster: str, no_token: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    places = ["home=/runs", "data.shards=s3://bucket/set", "downstream.shards=s3://bucket/set"]
    command = ["submit", "--address", cluster, "--", "pretrain", "experiments/quickstart.yaml", *places]
    assert main(command) == 2
    assert "it asks for a token, none was found; " in (refusal := capfd.readouterr().err)
    assert "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or put the cluster's token into ~/.ray/auth_token" in refusal
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another-token")
    assert main(["job", "list", "--address", cluster]) == 2
    refusal = capfd.readouterr().err
    assert "the token was refused" in refusal
    assert "another-token" not in refusal
    assert not in_job(), "only the job was checked as one"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_job_saves_a_checkpoint_and_the_same_submit_goes_on(
    cluster: str,
    with_token: None,
    started: Started,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    folder, home = checkout(tmp_path / "checkout"), tmp_path / "home"
    (folder / "job.yaml").write_text(yaml.safe_dump(experiment(write_slices(tmp_path / "slices"), home)))
    command = [sys.executable, "-m", "orchestrator.cli", "submit", "--address", cluster]
    command += ["--working-dir", str(folder), "--", "pretrain", "job.yaml"]
    with (tmp_path / "output").open("wb") as output:
        first = started(subprocess.Popen(command, cwd=clusters.ROOT, stdout=output, stderr=output))
    history = wait_for_step(home, STOP_AFTER_STEP, first)
    wait_for(lambda: "pretrain: step" in (tmp_path / "output").read_text(), first)
    capfd.readouterr()
    assert main(["job", "list", "--address", cluster]) == 0
    (job,) = jobs.jobs(jobs.connect(cluster))
    assert re.search(rf"{job.id} .*RUNNING .*pretrain job.yaml", capfd.readouterr().out)

    assert main(["job", "stop", job.id, "--address", cluster]) == 0
    assert first.wait(30) == 143
    done = len(Tail(history).read())
    assert STOP_AFTER_STEP < done < TOTAL_STEPS
    assert_points_equal_history(history.parent, steps=done)
    said = (tmp_path / "output").read_text()
    assert f"stopped after step {done} of {TOTAL_STEPS}, as asked; the same command goes on from there" in said
    capfd.readouterr()
    assert main(["job", "status", job.id, "--address", cluster]) == 0
    assert re.search(rf"{job.id} .*STOPPED", capfd.readouterr().out)
    assert main(["job", "logs", job.id, "--address", cluster]) == 143
    shown = capfd.readouterr().out
    assert shown in said
    assert re.search(rf"^pretrain: step \d+ of {TOTAL_STEPS}", shown, re.MULTILINE)
    ours = [line for line in shown.splitlines() if not line.startswith("(raylet)")]
    assert [line for line in ours if re.search(r"[\x00-\x08\x0b-\x1f]", line)] == [], (
        "a log holds no control characters"
    )

    assert main(command[3:]) == 0
    shown = capfd.readouterr().out
    assert f"goes on from step {done} of {TOTAL_STEPS}, checkpoint" in shown
    assert_points_equal_history(history.parent, steps=TOTAL_STEPS)
    assert re.search(rf"^pretrain: step {TOTAL_STEPS} of {TOTAL_STEPS} after .*, loss -?\d", shown, re.MULTILINE)
    assert "encoder: " in shown
    assert [entry["step"] for entry in Tail(history).read()] == list(range(TOTAL_STEPS)), "no step was trained twice"
