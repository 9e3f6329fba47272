"""Golden curves: the first losses of every method and task on phantoms, as they were before a change.

`make golden METHODS="simclr byol"` writes the curves of some methods or tasks into golden_curves.json, and
`make golden` all anew: do so only where CHANGELOG says that numbers change.
"""

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from operator import length_hint
from pathlib import Path
from typing import Any

import torch

from data.views.batch import Batch
from methods.base import Method
from methods.parts.multi_crop import SmallCrops
from methods.simsiam import SimSiam
from orchestrator.config.optimiser import Optimiser
from orchestrator.training.checkpoint import Stream
from orchestrator.training.loop import Plan, Trainee, train
from orchestrator.training.optimiser import Schedule
from orchestrator.training.world import World
from tests.methods.test_contract import (
    FACTS,
    IN_DIMS,
    TASK_CASES,
    encoder_for,
    labelled_batch,
    samples_of,
    tiny_config,
    tiny_encoder,
    tiny_method,
    tiny_task,
)

CURVES = Path(__file__).with_name("golden_curves.json")
TRAINED, STEPS = 10, 20  # steps that are trained, and those that the rate is planned for
TRAININGS = [*IN_DIMS, *((case, dims) for case in TASK_CASES for dims in (2, 3))]
CASES = [f"{case}, {dims}D" for case, dims in TRAININGS if not case.startswith("toy")]


def curve(case: str, trained: int = TRAINED) -> list[float]:
    """Train a tiny method or task on phantoms through the real loop; return its losses to six digits."""
    name, _, dims = case.partition(", ")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them add in another order
    try:
        return [float(f"{entry['loss']:.6g}") for entry in _losses(name, int(dims[0]), trained)]
    finally:
        torch.set_num_threads(threads)


def machine() -> str:
    """Name what the last digit depends on: the processor, whose kernels add in an order of their own, and torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, torch {torch.__version__}"


def _losses(name: str, dims: int, trained: int) -> list[dict[str, Any]]:
    method: Method = tiny_task(name, dims, "unet") if name in TASK_CASES else _tiny_method(name, dims)
    optimiser = Optimiser(name="adamw", lr=2e-3, weight_decay=0.05, clip_norm=1.0)
    plan = Plan(
        Schedule(optimiser, STEPS, warmup_steps=4),
        Stream("golden", seed=0, batch_size=2),
        num_samples=4,
        report_every_steps=trained,
    )
    entries: list[dict[str, Any]] = []
    batches = iter(_batches(name, dims, trained))
    train(
        Trainee(method),
        plan,
        lambda first: batches,
        World(),
        lambda metrics, folder=None: entries.extend(metrics["history"]),
        asked_to_stop=lambda: not length_hint(batches),
    )
    return entries


def _tiny_method(name: str, dims: int) -> Method:
    """Return a method of the contract suite; SimSiam without small crops, as when its curves were recorded."""
    if not name.startswith("simsiam"):
        return tiny_method(name, dims)
    config = tiny_config(name, dims).model_copy(update={"small_crops": SmallCrops()})
    torch.manual_seed(0)
    return SimSiam(config, tiny_encoder(encoder_for(name), dims), FACTS).train()


def _batches(name: str, dims: int, trained: int) -> list[Batch]:
    """Four labelled phantoms, two at a time, an epoch after another."""
    of_task = name in TASK_CASES
    pairs = [labelled_batch(dims, first) if of_task else samples_of(name, dims, 2, first) for first in (0, 2)]
    return [replace(pairs[step % 2], epochs=pairs[step % 2].epochs + step // 2) for step in range(trained)]


def _name(case: str) -> str:
    return case.partition(",")[0].split()[0]


def record(names: Sequence[str]) -> None:
    """Record the curves of some methods or tasks anew, or of all if none is named; drop those of no case."""
    kept: dict[str, Any] = json.loads(CURVES.read_text()) if names else {"machine": machine()}
    curves = {case: kept[case] if names and _name(case) not in names else curve(case) for case in CASES}
    lines = ",\n".join(f"{json.dumps(case)}: {found}" for case, found in curves.items())
    CURVES.write_text(f'{{\n"machine": {json.dumps(kept["machine"])},\n{lines}\n}}\n')


if __name__ == "__main__":
    record(sys.argv[1:])
