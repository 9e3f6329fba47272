"""Forecast: what 20 timed steps foretell of a pretraining, beside what its command then takes, run by ``python -m``.

Each pretraining is timed before and after its command, and the forecast is the mean of both, since the machine may do
other things meanwhile. Memory is the peak of all processes of the command, Ray's too, with shared pages counted once;
disk is all that the command leaves in its home.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from orchestrator.bench import cohort
from orchestrator.bench.cost import cost_of
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import load
from orchestrator.runs.course import Course
from orchestrator.runs.forecast import Forecast, forecast, of_command, stage_work
from orchestrator.runs.timing import time_anew

SLICES, VOLUMES = 512, 24
NEAR = 0.2
LOOK_EVERY_S = 1.0
CROPS_2D, CROPS_3D = {"size": 64, "iou": [0.3, 0.6]}, {"size": 32, "iou": [0.3, 0.6]}
SIMSIAM = {"name": "simsiam", "projector_dim": 512, "predictor_dim": 128}
# By the encoder's name: shards, encoder, method, optimiser, steps, batch and readers.
PRETRAININGS: dict[str, dict[str, Any]] = {
    "resnet": {
        "data": {"shards": "slices"},
        "encoder": {"spatial_dims": 2, "depth": 18, "init_features": 32},
        "method": {**SIMSIAM, "crops": CROPS_2D},
        "optimiser": {"name": "sgd", "lr": 0.05},
        "budget": {"steps": 150, "batch_size": 32},
        "resources": {"readers": 1},
    },
    "unet": {
        "data": {"shards": "volumes"},
        "encoder": {"spatial_dims": 3, "features": [16, 16, 32, 64, 128, 16]},
        "method": {**SIMSIAM, "crops": CROPS_3D},
        "optimiser": {"name": "sgd", "lr": 0.05},
        "budget": {"steps": 80, "batch_size": 8},
        "resources": {"readers": 0},
    },
    "swin_unetr": {
        "data": {"shards": "volumes"},
        "encoder": {"spatial_dims": 3, "feature_size": 12, "window_size": 4},
        "method": {"name": "simmim", "crop_size": 64, "block": 32},
        "optimiser": {"name": "adamw", "lr": 0.0005},
        "budget": {"steps": 100, "batch_size": 1},
        "resources": {"readers": 0},
    },
}


@dataclass(frozen=True)
class Agreement:
    """A number that was forecast, and the one that was measured."""

    encoder: str
    what: str
    forecast: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.forecast / self.measured

    @property
    def near(self) -> bool:
        return abs(self.ratio - 1) <= NEAR


def experiment_file(folder: Path, name: str) -> Path:
    """Write an encoder's experiment on shards in a folder; return its file."""
    given = PRETRAININGS[name]
    tree: dict[str, Any] = {"name": name, "home": str(folder / f"runs-{name}"), "health": {"times": 2}, **given}
    tree["data"] = {"shards": str(folder / given["data"]["shards"])}
    tree["training"] = {"checkpoint_every_steps": 30}
    tree["encoder"] = {"name": name, "in_channels": 1, **given["encoder"]}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def foretold(experiment: Experiment) -> Forecast:
    """Time a pretraining; return what its command will take."""
    work = replace(stage_work(Course.open(experiment), measured=False), timing=time_anew(experiment, 0))
    return of_command([forecast(work, experiment)], experiment)


def compare(folder: Path, name: str) -> tuple[list[Agreement], float]:
    """Time an encoder's pretraining, run it, and time it again.

    Returns the numbers, and the share of the cores that other programs had meanwhile.
    """
    file = experiment_file(folder, name)
    experiment = load(file, [])
    before = foretold(experiment)
    idle = psutil.cpu_times()
    cost = cost_of(["pretrain", str(file)], folder / f"{name}.log", LOOK_EVERY_S)
    others = _others(idle, psutil.cpu_times(), cost.cpu_s)
    after = foretold(experiment)
    times = [one.time for one in (before, after) if one.time]
    memories = [one.memory_bytes for one in (before, after) if one.memory_bytes]
    left = sum(path.stat().st_size for path in Path(experiment.home).rglob("*") if path.is_file())
    return [
        Agreement(name, "time, s", mean(time.wall_s for time in times), cost.seconds),
        Agreement(name, "CPU time, s", mean(time.cpu_s for time in times), cost.cpu_s),
        Agreement(name, "memory, MiB", mean(memories) / 2**20, cost.peak_mb * 1e6 / 2**20),
        Agreement(name, "disk, MiB", before.disk_bytes / 2**20, left / 2**20),
    ], others


def _others(before: Any, after: Any, own_s: float) -> float:
    """Return the share of all cores' time that went to other programs."""
    passed = sum(after) - sum(before)
    return max(0.0, passed - (after.idle - before.idle) - (after.iowait - before.iowait) - own_s) / passed


def main(names: Sequence[str] = tuple(PRETRAININGS)) -> int:
    """Print forecast and measurement of each encoder's pretraining."""
    printed, console = Table("encoder", "what", "forecast", "measured", "ratio", "within 20 %"), Console()
    # Ray gives its workers a lower priority than other programs have, whose noise would fall on the steps.
    os.environ.setdefault("RAY_worker_niceness", "0")
    shares: list[float] = []
    with TemporaryDirectory() as folder, console.status("writing shards") as status:
        root = Path(folder)
        cohort.write_slice_shards(root / "slices", SLICES, shape=(128, 128))
        cohort.write_volume_shards(root / "volumes", VOLUMES, shape=(64, 64, 64))
        for name in names:
            status.update(f"pretraining {name}")
            compared, others = compare(root, name)
            shares.append(others)
            for one in compared:
                numbers = (f"{one.forecast:,.0f}", f"{one.measured:,.0f}", f"{one.ratio:.2f}")
                printed.add_row(one.encoder, one.what, *numbers, "yes" if one.near else "NO")
    console.print(printed)
    console.print(f"other programs had {mean(shares):.0%} of the cores while the commands ran")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or tuple(PRETRAININGS)))
