"""Ray clusters that are not this process's own: started for a test as processes of their own, and ended with it.

Run as a program, it starts the nodes and holds them until its input ends.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
STORE_BYTES = 200 * 2**20
END_WITHIN_S = 30.0


@contextmanager
def nodes(*cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Start a cluster with one node per number of CPUs; yield a driver's environment that joins it."""
    with _scratch() as scratch:
        own = {**os.environ, **(environment or {}), "RAY_TMPDIR": scratch, "OMP_NUM_THREADS": "1"}
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
def _scratch() -> Iterator[str]:
    """Give a folder with a short name: Ray puts sockets into it, whose paths may have 107 characters."""
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end(holder: subprocess.Popen[bytes], started: list[psutil.Process]) -> None:
    """Wait for a program to end by itself; kill what is left of it and of the processes that it started."""
    try:
        holder.wait(END_WITHIN_S)
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
    for number in cpus:
        cluster.add_node(num_cpus=number, object_store_memory=STORE_BYTES)
    sys.stdout.write(json.dumps({"address": cluster.address}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _hold([int(number) for number in sys.argv[1:]])
