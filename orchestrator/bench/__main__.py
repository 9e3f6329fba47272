"""Run all benchmarks, print the figures beside their targets, and write them to build/bench.json."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from orchestrator.bench import cohort, drawing, loading, training
from orchestrator.bench.targets import Target, reached
from orchestrator.cluster.connection import connected, hardware

OUT = Path("build") / "bench.json"
SLICES, SLICE_BATCH, SLICE_STEPS = 1536, 128, 480
VOLUMES, VOLUME_BATCH, VOLUME_STEPS = 48, 4, 480


def main() -> int:
    """Measure, print and write all figures."""
    console = Console()
    torch.set_num_threads(1)
    # Ray gives its workers a lower priority than a DataLoader's workers have; for the comparison they must be equal.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with TemporaryDirectory() as folder:
        figures = _measure(Path(folder), console)
    targets = reached(figures)
    for table in (_loading_table(figures), _other_table(figures), _target_table(targets)):
        console.print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**figures, "targets": [asdict(target) for target in targets]}, indent=2) + "\n")
    console.print(f"written to {OUT}")
    return 0


def _measure(folder: Path, console: Console) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    # Each takes part of a second, before and after what it is compared with: a single one would depend on the
    # machine.
    drawn = [drawing.time_per_image(SLICE_BATCH)]
    with console.status("writing shards") as status:
        slices = cohort.write_slice_shards(folder / "slices", SLICES)
        volumes = cohort.write_volume_shards(folder / "volumes", VOLUMES)
        status.update("starting Ray")
        with connected():
            figures["hardware"] = hardware()
            status.update("loading slices")
            figures["slices"] = loading.compare(slices, SLICE_BATCH, SLICE_STEPS)
            drawn.append(drawing.time_per_image(SLICE_BATCH))
            status.update("loading volumes")
            figures["volumes"] = loading.compare(volumes, VOLUME_BATCH, VOLUME_STEPS)
        drawn.append(drawing.time_per_image(SLICE_BATCH))
        status.update("ingest and training")
        figures["training"] = training.measure(folder)
    figures["drawing"] = {name: median(times[name] for times in drawn) for name in drawn[0]}
    loading_us = 1e6 / figures["slices"]["feed"]["samples_per_s"]
    figures["drawing"]["share_of_loading"] = figures["drawing"]["iou_pair_us"] / loading_us
    figures["drawing"]["plain_share_of_loading"] = figures["drawing"]["plain_crops_us"] / loading_us
    return figures


def _loading_table(figures: dict[str, Any]) -> Table:
    table = Table("loading", "MB/s", "samples/s", "first batch after, s", title="median of interleaved rounds")
    for kind in ("slices", "volumes"):
        for name, speed in figures[kind].items():
            if isinstance(speed, dict):
                numbers = [speed.get(field) for field in ("mb_per_s", "samples_per_s", "first_batch_s")]
                table.add_row(f"{kind}: {name}", *("" if n is None else f"{n:,.1f}" for n in numbers))
    return table


def _other_table(figures: dict[str, Any]) -> Table:
    drawn, trained = figures["drawing"], figures["training"]
    sizes = " and ".join(str(number) for number in trained["volumes"])
    table = Table("what", "figure", show_header=False)
    table.add_row("drawing an IoU pair, per image", f"{drawn['iou_pair_us']:.2f} us")
    table.add_row("drawing two plain crops, per image", f"{drawn['plain_crops_us']:.2f} us")
    table.add_row("IoU pair / loading of an image", f"{drawn['share_of_loading']:.2%}")
    table.add_row("two plain crops / loading of an image", f"{drawn['plain_share_of_loading']:.2%}")
    table.add_row("share of a training step spent waiting for data", f"{trained['data_wait_share']:.1%}")
    table.add_row("scans that ingest reads", f"{trained['ingest_scans_per_s']:.2f} per s")
    for name in ("ingest", "training"):
        peaks = " and ".join(f"{peak:,.0f}" for peak in trained[f"{name}_peak_mb"])
        table.add_row(f"peak memory of {name}, {sizes} volumes", f"{peaks} MB")
    return table


def _target_table(targets: list[Target]) -> Table:
    table = Table("asked for", "figure", "expected", "met")
    for target in targets:
        table.add_row(target.figure, f"{target.value:.3f}", target.expected, "yes" if target.met else "NO")
    return table


if __name__ == "__main__":
    sys.exit(main())
