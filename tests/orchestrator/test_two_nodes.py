"""Two nodes of a cluster, a worker on each, shards and checkpoints in a bucket: as on one node, real Ray and S3."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.history import HISTORY, steps
from tests import clusters
from tests.buckets import Bucket, served
from tests.experiments import tiny_experiment
from tests.shardsets import write_slices

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TOTAL_STEPS = 12
CPUS_PER_WORKER = 3
# Two workers of three CPUs do not fit on a node of four: each node gets one.
TWO_NODES, ONE_NODE = (4, 4), (8,)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with served() as bucket:
        yield bucket


def experiment(shards: str, storage: str, home: Path) -> dict[str, Any]:
    training = {"report_every_steps": 4, "checkpoint_every_steps": 6}
    resources = {
        "workers": 2,
        "cpus_per_worker": CPUS_PER_WORKER,
        "reader_resource": "reader",
        "storage": storage,
    }
    return tiny_experiment("nodes", shards, home, TOTAL_STEPS, training=training, resources=resources)


def run(folder: Path, bucket: Bucket, cpus: tuple[int, ...], shards: str) -> list[dict[str, Any]]:
    """Pretrain on a cluster of its own with nodes of so many CPUs; return the steps."""
    file = folder / f"{len(cpus)}.yaml"
    home = folder / f"home-{len(cpus)}"
    file.write_text(yaml.safe_dump(experiment(shards, f"{bucket.uri}/checkpoints/{len(cpus)}", home)))
    with clusters.nodes(*cpus, environment=bucket.environment) as environment:
        command = [sys.executable, "-m", "orchestrator.cli", "pretrain", str(file)]
        done = subprocess.run(
            command, cwd=clusters.ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
    assert done.returncode == 0, done.stderr
    (history,) = home.glob(f"**/{HISTORY}")
    return steps(history.parent, "pretrain")


def test_two_nodes_see_the_samples_and_reach_the_loss_of_one(bucket: Bucket, tmp_path: Path) -> None:
    shards = bucket.upload(Path(write_slices(tmp_path / "slices")), "shards")
    one = run(tmp_path, bucket, ONE_NODE, shards)
    two = run(tmp_path, bucket, TWO_NODES, shards)
    assert [entry["step"] for entry in two] == list(range(TOTAL_STEPS))
    assert [entry["samples"] for entry in two] == [entry["samples"] for entry in one]
    assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], abs=1e-6)
    saved = {key.split("/")[4] for key in bucket.keys("checkpoints/2") if key.count("/") > 4}
    assert {"step_000000006", "step_000000012"} <= saved
