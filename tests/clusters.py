"""Ray clusters other than this process's own: separate processes that a test starts and that end with the test.

Run as a program, it starts the nodes and holds them until its input ends.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray

ROOT = Path(__file__).parents[1]
STORE_BYTES = 200 * 2**20
START_WITHIN_S, END_WITHIN_S = 120.0, 20.0
# One thread for each process, and no process started in advance: it would lack our runtime environment.
SPARING = {"OMP_NUM_THREADS": "1", "RAY_prestart_worker_first_driver": "0"}


def joined() -> dict[str, str]:
    """Return the environment of a command that joins the Ray of this process."""
    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@contextmanager
def nodes(*cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Start a cluster with one node per number of CPUs; yield a driver's environment that joins it.

    The last node has the custom resource ``reader``.
    """
    with short_folder() as scratch:
        own = {**os.environ, **SPARING, **(environment or {}), "RAY_TMPDIR": scratch}
        own.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "tests.clusters", *map(str, cpus)]
        with (Path(scratch) / "log").open("wb") as log:
            holder = subprocess.Popen(
                command, cwd=ROOT, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            line = holder.stdout.readline()
            assert line, (Path(scratch) / "log").read_text()
            yield {**own, "RAY_ADDRESS": json.loads(line)["address"]}
        finally:
            started = psutil.Process(holder.pid).children(recursive=True)
            holder.stdin.close()
            end(holder, started)


@contextmanager
def head(cpus: int, token: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a cluster of one node that asks for a token, by `ray start`; yield its dashboard and its environment."""
    with short_folder() as scratch:
        own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        own |= {**SPARING, "RAY_TMPDIR": scratch, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
        dashboard, client = free_ports(2)
        ports = ["--port=0", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        ports += ["--dashboard-agent-listen-port=0"]
        command = ["ray", "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={scratch}", *ports]
        command += [f"--num-cpus={cpus}", f"--object-store-memory={STORE_BYTES}", "--include-dashboard=true"]
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            holder = subprocess.Popen(command, cwd=scratch, env=own, stdout=output, stderr=output)
        try:
            _wait_for_port(holder, dashboard, log)
            yield f"http://127.0.0.1:{dashboard}", own
        finally:
            started = psutil.Process(holder.pid).children(recursive=True)
            holder.terminate()
            end(holder, started, within_s=3)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for_port(holder: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and holder.poll() is None:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"no dashboard within {START_WITHIN_S} s: {log.read_text()}")


@contextmanager
def short_folder() -> Iterator[str]:
    """Give a folder with a short name: Ray puts sockets into it, whose paths may have 107 characters."""
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end(holder: subprocess.Popen[bytes], started: list[psutil.Process], within_s: float = END_WITHIN_S) -> None:
    """Wait for a program to end by itself; kill what is left of it and of the processes that it started."""
    try:
        holder.wait(within_s)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()
    for process in psutil.wait_procs(started, timeout=5)[1]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _hold(cpus: list[int]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for place, number in enumerate(cpus, start=1):
        own = {"reader": 4} if place == len(cpus) else {}
        cluster.add_node(num_cpus=number, object_store_memory=STORE_BYTES, resources=own)
    sys.stdout.write(json.dumps({"address": cluster.address}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _hold([int(number) for number in sys.argv[1:]])
