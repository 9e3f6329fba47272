"""What keeps a command from starting: Ray that cannot be joined or started, folders that cannot be written."""

import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.exceptions import AuthenticationError

from data.files import StorageError, check_writable
from orchestrator.cli import main
from orchestrator.cluster import startup
from orchestrator.cluster.startup import StartupError
from tests import clusters
from tests.experiments import tiny_experiment
from tests.shardsets import write_slices

COMMAND = [sys.executable, "-m", "orchestrator.cli"]
WITHIN_S = 60.0


@pytest.fixture
def dead() -> str:
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"))


def refusal(*arguments: str, **environment: str) -> str:
    """Run a command that must be refused within a minute; return the sentence that it says."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=clusters.ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def pretraining(shards: str, folder: Path, home: Path) -> str:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_experiment("tiny", shards, home, 2)))
    return str(file)


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S)
def test_a_dead_ray_address_is_refused_in_a_sentence(shards: str, tmp_path: Path, dead: str) -> None:
    said = refusal("pretrain", pretraining(shards, tmp_path, tmp_path / "runs"), RAY_ADDRESS=dead)
    assert said == (
        f"pretrain: RAY_ADDRESS {dead}: nothing answers there ([Errno 111] Connection refused); expected the head of "
        "a running cluster; start it with `ray start --head`, correct the address, or unset RAY_ADDRESS to use this "
        "machine alone"
    )


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S)
def test_a_temporary_folder_with_too_long_a_path_is_refused_in_a_sentence(shards: str, tmp_path: Path) -> None:
    (folder := tmp_path / ("x" * 90)).mkdir()
    said = refusal("pretrain", pretraining(shards, tmp_path, tmp_path / "runs"), RAY_TMPDIR=str(folder))
    assert re.search(
        rf"temporary folder {folder} has a path of {len(str(folder))} bytes, expected at most \d\d: ", said
    )
    assert said.endswith("set RAY_TMPDIR to a shorter one, such as /tmp")


def test_the_longest_temporary_folder_that_is_named_is_not_refused() -> None:
    with pytest.raises(StartupError, match="expected at most") as refused:
        startup._check_length("/" + "x" * 100)
    most = int(re.findall(r"at most (\d+)", str(refused.value))[0])
    startup._check_length("/" + "x" * (most - 1))
    with pytest.raises(StartupError):
        startup._check_length("/" + "x" * most)


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_home_that_cannot_be_written_is_refused_in_a_sentence(
    shards: str, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / ("file" if kind == "a file" else "file/runs")
    assert main(["pretrain", pretraining(shards, tmp_path, home)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"pretrain: home {home}: cannot be written (")
    assert said.endswith("give home another one, or check its permissions and its free space")


def test_a_place_that_cannot_be_written_is_named_with_its_field(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^resources\.storage .*/file/x: cannot be written \(Not a directory\)"):
        check_writable(str(tmp_path / "file" / "x"), "resources.storage")
    with pytest.raises(StorageError, match=r"^home /proc/x: cannot be written"):
        check_writable("/proc/x", "home")
    check_writable(str(tmp_path / "new" / "folder"), "home")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.parametrize("address", ["nonsense", "head", "head:port", "head:"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(StartupError, match=rf"^RAY_ADDRESS {address}: not an address; expected HOST:PORT"):
        startup._check_answer(address)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AuthenticationError("Invalid token"), r"the cluster refused the token \(.*\); set RAY_AUTH_TOKEN or"),
        (RuntimeError("Version mismatch: 2.59\nmore"), r"\(Version mismatch: 2\.59\); .* use the versions that the"),
        (ConnectionError("Could not find any running Ray instance."), r"\(Could not find any .*\); .*; start one"),
    ],
)
def test_a_cluster_that_refuses_says_why_and_what_to_do(error: Exception, message: str) -> None:
    with pytest.raises(StartupError, match=r"^RAY_ADDRESS auto: .*" + message), startup.joining("auto"):
        raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x"),
            r"/dev/shm/x: No space .*; free space there",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/nobody/.ray"),
            r"/nobody/\.ray: Permission .* set HOME",
        ),
        (
            RuntimeError("The current node timed out during startup. This"),
            r"timed out .* when the machine is less busy",
        ),
    ],
)
def test_a_ray_that_does_not_start_here_says_why_and_what_to_do(error: Exception, message: str) -> None:
    with pytest.raises(StartupError, match=r"^Ray could not be started: .*" + message), startup.starting():
        raise error
