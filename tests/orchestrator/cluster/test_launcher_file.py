"""The files for clusters: Ray's launcher takes them, and fields that it would refuse are named."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from orchestrator.cluster import launcher_file
from orchestrator.cluster.launcher_file import ClusterFileError
from tests.clusters import ROOT


def tree() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_ray_s_launcher_takes_the_file() -> None:
    full = launcher_file.check(ROOT / "cluster.yaml")
    kinds = full["available_node_types"]
    assert {name: (kind["min_workers"], kind["max_workers"]) for name, kind in kinds.items()} == {
        "head": (0, 0),
        "gpu": (0, 4),
        "reading": (0, 6),
    }
    assert "GPU" not in kinds["head"]["resources"]


def test_a_cluster_file_for_machines_of_one_s_own_is_taken(tmp_path: Path) -> None:
    content = {
        name: value for name, value in tree().items() if name not in ("available_node_types", "head_node_type")
    }
    content["provider"] = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]}
    content["max_workers"] = 2
    content["auth"] = {"ssh_user": "ray"}
    content["min_workers"] = 2
    full = launcher_file.check(written(tmp_path, content))
    (kind,) = full["available_node_types"].values()
    assert kind["max_workers"] == 2


def test_every_request_needs_the_token_which_the_file_does_not_hold() -> None:
    content = tree()
    assert content["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*content["head_start_ray_commands"], *content["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts if "ray start" in line)
    assert not re.search(r"RAY_AUTH_TOKEN=|[0-9a-f]{32}", (ROOT / "cluster.yaml").read_text())


@pytest.mark.slow
def test_the_packages_are_installed_from_the_files_that_are_copied(tmp_path: Path) -> None:
    """The wheel is built as the set-up builds it, but from what this machine has, so that no network is needed."""
    folder, content = "/home/ray/raydiology/", tree()
    copied = {there: here for there, here in content["file_mounts"].items() if there.startswith(folder)}
    for there, here in copied.items():
        shutil.copy(ROOT / here, tmp_path / there.removeprefix(folder))
    install = "pip install -q -c ~/raydiology/constraints.txt"
    assert content["setup_commands"] == [
        f"{install} ~/raydiology",
        f"{install} --no-deps dynamic-network-architectures",
    ]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", str(tmp_path / "wheels"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    (distribution,) = distributions(path=[str(wheel)])
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = {Requirement(line) for line in distribution.requires or [] if "extra ==" not in line}
    assert found == {Requirement(line) for line in asked}


def test_the_dashboard_listens_to_the_head_alone() -> None:
    (head,) = [line for line in tree()["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_nodes": 3}, "top level: .*'max_nodes' was unexpected"),
        ({"head_node_type": "boss"}, "`head_node_type` must be one of `available_node_types`"),
        ({"idle_timeout_minutes": "ten"}, "idle_timeout_minutes: 'ten' is not of type 'number'"),
    ],
)
def test_what_the_launcher_would_refuse_is_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match=rf"cluster\.yaml: {named}"):
        launcher_file.check(written(tmp_path, {**tree(), **changes}))


def test_a_cluster_can_grow_to_what_its_file_allows() -> None:
    # 4 machines of 48 CPUs and 4 GPUs, 6 of 16 CPUs, a head that offers none.
    assert launcher_file.capacity(tree()) == {"CPU": 4 * 48 + 6 * 16, "GPU": 16.0, "reader": 96.0}
    assert launcher_file.capacity({**tree(), "max_workers": 2})["GPU"] == 8.0
    assert launcher_file.capacity({"provider": {"type": "local"}}) == {}


def test_the_kubernetes_job_ends_by_itself_and_asks_for_a_token() -> None:
    job = yaml.safe_load((ROOT / "cluster" / "rayjob.yaml").read_text())
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["activeDeadlineSeconds"] == 48 * 3600
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    wait = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert wait == "600"
