"""Training and ingest on scans: memory at N and 4 N volumes, speed of ingest, and how long a step waits for data."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from orchestrator.bench.cohort import write_scans
from orchestrator.bench.cost import Cost, cost_of
from orchestrator.history import HISTORY

NUM_SCANS = (16, 64)
NUM_STEPS = 30
# The first steps wait for readers to start.
STEPS_SKIPPED = 5
BATCH_SIZE = 32


def measure(folder: Path, num_scans: Sequence[int] = NUM_SCANS) -> dict[str, Any]:
    """Ingest scans and pretrain on them for each number of scans; return memory in MB, speed and the wait share.

    The speed is that of the scans that the larger ingest reads more than the smaller one: the start does not count.
    """
    ingests: list[Cost] = []
    training_mb, waits = [], []
    for number in num_scans:
        root = folder / f"{number}-scans"
        scans = write_scans(root / "scans", number)
        shards = root / "shards"
        command = ["ingest", "--source", str(scans), "--layout", "volumes", "--recipe", "ct_abdomen_slices"]
        ingests.append(cost_of([*command, "--out", str(shards), "--val-fraction", "0"], root / "ingest.log"))
        experiment = root / "experiment.yaml"
        experiment.write_text(yaml.safe_dump(_experiment(shards, root / "runs")))
        training_mb.append(cost_of(["pretrain", str(experiment)], root / "pretrain.log").peak_mb)
        waits.append(_wait_share(root / "runs"))
    return {
        "volumes": list(num_scans),
        "ingest_scans_per_s": (num_scans[-1] - num_scans[0]) / (ingests[-1].seconds - ingests[0].seconds),
        "ingest_peak_mb": [ingest.peak_mb for ingest in ingests],
        "training_peak_mb": training_mb,
        "ingest_growth": ingests[-1].peak_mb / ingests[0].peak_mb - 1,
        "training_growth": training_mb[-1] / training_mb[0] - 1,
        "data_wait_share": mean(waits),
    }


def _experiment(shards: Path, home: Path) -> dict[str, Any]:
    """Return the quickstart's small pretraining."""
    return {
        "name": "bench",
        "home": str(home),
        "data": {"shards": str(shards), "split": "train"},
        "encoder": {"name": "unet", "spatial_dims": 2, "in_channels": 1, "features": [16, 16, 32, 32, 64, 16]},
        "method": {
            "name": "simsiam",
            "crops": {"size": [48, 48], "iou": [0.3, 0.6]},
            "projector_dim": 128,
            "predictor_dim": 32,
        },
        "optimiser": {"name": "sgd", "lr": 0.05},
        "budget": {"steps": NUM_STEPS, "batch_size": BATCH_SIZE},
        "tracking": {"pictures": False},
    }


def _wait_share(home: Path) -> float:
    (history,) = home.glob(f"**/{HISTORY}")
    steps = [json.loads(line) for line in history.read_text().splitlines()]
    return mean(step["data_wait_share"] for step in steps if step["step"] >= STEPS_SKIPPED)
