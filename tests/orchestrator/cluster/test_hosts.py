"""Hosts: where the processes of many jobs run, on a cluster of two machines that a test starts."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.cluster import hosts
from orchestrator.runs import pool
from tests.orchestrator.runs.test_pool import Owner, meet


@pytest.fixture(scope="module")
def second_machine(ray_cluster: Path) -> Iterator[str]:
    """Let a second node with memory join the tests' Ray; the id of the node, which ends with the test."""
    before = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--block"]
    joining = subprocess.Popen(
        [
            *command,
            "--num-cpus=0",
            f"--memory={4 * psutil.virtual_memory().total}",
            "--object-store-memory=100000000",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not (joined := {node["NodeID"] for node in ray.nodes() if node["Alive"]} - before):
            assert time.monotonic() < deadline, "the second node did not join"
            time.sleep(0.2)
        yield joined.pop()
    finally:
        for process in [*psutil.Process(joining.pid).children(recursive=True), joining]:
            process.terminate()
        joining.wait(30)


def node_of_job(meeting: Path, place: int, others: int) -> str:
    """Meet the other jobs, and tell the node that this one runs on."""
    meet(meeting, place, others)
    return ray.get_runtime_context().get_node_id()


def test_a_few_jobs_stay_on_the_machine_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    memory = psutil.virtual_memory().total
    fitting = int(hosts.SHARE * memory / hosts.JOB_BYTES)
    assert hosts.resources_of_a_job(tmp_path, fitting, print) == {"cpu": 0, "node:10.0.0.1": hosts.SLIVER}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_more_jobs_than_memory_holds_run_on_all_machines_that_see_the_folder(
    tmp_path: Path, second_machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "SHARE", 0.0)
    monkeypatch.setattr(hosts, "JOB_BYTES", psutil.virtual_memory().total)  # more than this machine has left
    said = list[str]()
    asked = hosts.resources_of_a_job(tmp_path / "table", 2, said.append)
    assert (asked, said, list((tmp_path / "table").iterdir())) == ({"cpu": 0, "memory": hosts.JOB_BYTES}, [], [])
    (meeting := tmp_path / "meeting").mkdir()
    owner = Owner(tmp_path / "table", [partial(node_of_job, meeting, place, 2) for place in range(2)])
    pool.run(owner.load(), 2)
    assert set(owner.ended.values()) == {second_machine}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_where_a_machine_cannot_read_the_folder_all_jobs_stay_and_a_line_says_why(
    tmp_path: Path, second_machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "SHARE", 0.0)
    monkeypatch.setattr(hosts, "_sees", lambda node_id, folder: False)
    said = list[str]()
    asked = hosts.resources_of_a_job(tmp_path / "table", 40, said.append)
    assert asked == {"cpu": 0, f"node:{ray.util.get_node_ip_address()}": hosts.SLIVER}
    assert said[0].startswith(
        f"40 trials at once take about 52 GB of this machine: {os.uname().nodename} cannot read"
    )
