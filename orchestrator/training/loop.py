"""The training loop: one method on one rank, for pretraining and fine-tuning alike.

It knows torch.distributed but not Ray: batches come from an iterator and reports go to a callable, so that a test can
run the same loop in one process.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Losses, Method, Progress, Views
from methods.parts.sync_batch_norm import convert_sync_batch_norm
from orchestrator.training import optimiser as optimisers
from orchestrator.training.checkpoint import State, Stream, restore, save, whole_state
from orchestrator.training.finite import refuse_non_finite
from orchestrator.training.optimiser import Schedule
from orchestrator.training.world import World, any_rank, mean_over_ranks


@runtime_checkable
class Watch(Protocol):
    """A measurement on all ranks together that leaves the trained network unchanged."""

    def due(self, step: int) -> bool:
        """Tell whether to look after ``step`` steps."""
        ...

    def run(self, method: Method, world: World) -> dict[str, float]:
        """Return the metrics, the same on every rank."""
        ...


@runtime_checkable
class Evaluation(Watch, Protocol):
    """A watch with ``score`` among its metrics; higher is better."""

    def exhausted(self, state: State) -> bool:
        """Tell whether to stop early."""
        ...


@dataclass(frozen=True)
class Trainee:
    """The modules to train, and how they are judged meanwhile; ``export`` adds files to each checkpoint folder."""

    method: Method
    evaluation: Evaluation | None = None
    watches: tuple[Watch, ...] = ()
    export: Callable[[Path, Method], None] = field(default=lambda folder, method: None)


@dataclass(frozen=True)
class Plan:
    """How long and how to train ``num_samples`` samples, epoch after epoch.

    A rank's share of a batch passes through the network in ``num_chunks`` chunks. ``ends_at`` ends the training
    before its schedule does.
    """

    schedule: Schedule
    stream: Stream
    num_samples: int
    precision: str = "fp32"
    num_chunks: int = 1
    sync_batch_norm: bool = True
    report_every_steps: int = 10
    report_every_s: float = 1.0
    checkpoint_every_steps: int = 200
    ends_at: int | None = None

    @property
    def total_steps(self) -> int:
        return self.schedule.total_steps

    @property
    def last_step(self) -> int:
        """The number of steps after which training ends."""
        return self.total_steps if self.ends_at is None else self.ends_at

    def epochs(self, step: int) -> int:
        """Return how many epochs are complete after ``step`` steps."""
        return step * self.stream.batch_size // self.num_samples

    def progress(self, step: int) -> Progress:
        """Return the progress after ``step`` steps."""
        return Progress(step, self.total_steps, self.epochs(step))


@runtime_checkable
class Report(Protocol):
    """Hand metrics, and a checkpoint folder if there is one, to their keeper; called by every rank."""

    def __call__(self, metrics: dict[str, Any], checkpoint: Path | None = None) -> None: ...


def train(
    trainee: Trainee,
    plan: Plan,
    feed: Callable[[int], Iterator[Batch]],
    world: World,
    report: Report,
    checkpoint: Path | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> State:
    """Train to the end of the plan, or to early stopping, from a checkpoint if one is given.

    ``feed`` takes the first step and yields this rank's batch for every step from there on. ``asked_to_stop`` is
    called before each report; if any rank is asked to stop, all ranks end with a checkpoint.
    """
    method = trainee.method.to(world.device)
    method.pass_in_chunks(plan.num_chunks)
    model = _distribute(method, plan, world)
    optimiser = optimisers.build(method, plan.schedule.config)
    state = restore(checkpoint, method, optimiser, plan.stream, world) if checkpoint else State()
    step_ended, reported = time.perf_counter(), float("-inf")
    batches, history, num_reported = feed(state.step), [], 0
    exhausted: Callable[[State], bool] = trainee.evaluation.exhausted if trainee.evaluation else lambda state: False
    stop = exhausted(state) or any_rank(asked_to_stop(), world)
    while state.step < plan.last_step and not stop:
        entry = _step(model, method, optimiser, plan, world, batches, state.step, step_ended)
        step_ended = time.perf_counter()
        history.append(entry)
        state = replace(state, step=state.step + 1)
        _after_step(method, plan, state.step)
        _watch(trainee, state.step, entry, world)
        last = state.step == plan.last_step
        evaluate = trainee.evaluation is not None and (last or trainee.evaluation.due(state.step))
        if evaluate:
            state = _evaluate(trainee, method, world, state, entry)
        checkpoint_due = evaluate or last or state.step % plan.checkpoint_every_steps == 0
        report_due = checkpoint_due or _report_due(plan, state.step, reported, world)
        stop = report_due and any_rank(asked_to_stop(), world)
        if checkpoint_due or stop:
            _save(trainee, optimiser, state, plan, history, num_reported, world, report)
            history, num_reported = [], 0
        elif report_due:
            report(_metrics(history[num_reported:], state))
            num_reported = len(history)
        if report_due:
            reported = time.perf_counter()
        stop = stop or (evaluate and exhausted(state))
    return state


def _watch(trainee: Trainee, step: int, entry: dict[str, Any], world: World) -> None:
    """Add what the watches that are due measure to the step's entry."""
    for watch in trainee.watches:
        if watch.due(step):
            trainee.method.eval()
            entry.update(watch.run(trainee.method, world))


def _save(
    trainee: Trainee,
    optimiser: torch.optim.Optimizer,
    state: State,
    plan: Plan,
    history: list[dict[str, Any]],
    num_reported: int,
    world: World,
    report: Report,
) -> None:
    """Report a checkpoint; rank 0 writes it, with the parts of a state that other ranks hold.

    It holds every step since the checkpoint before it, also those that were reported: a report may be lost.
    """
    weights = whole_state(trainee.method, world)
    with TemporaryDirectory() as folder:
        if world.rank == 0:
            trainee.export(Path(folder), trainee.method)
            save(Path(folder), weights, optimiser, state, plan.stream, history)
        report(_metrics(history[num_reported:], state), Path(folder) if world.rank == 0 else None)


def _distribute(method: Method, plan: Plan, world: World) -> Callable[[Views], Losses]:
    if world.size == 1:
        return method
    if plan.sync_batch_norm:
        convert_sync_batch_norm(method)
    # A rank's own part of a state is not overwritten by rank 0's.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, method.shares)  # pyright: ignore[reportPrivateUsage]
    return DistributedDataParallel(method, device_ids=[world.device] if world.device.type == "cuda" else None)


def _after_step(method: Method, plan: Plan, step: int) -> None:
    """Let the method update what no gradient trains, also at the end of each epoch."""
    progress = plan.progress(step)
    method.after_step(progress)
    if progress.epoch > plan.epochs(step - 1):
        method.after_epoch(progress)


def _step(
    model: Callable[[Views], Losses],
    method: Method,
    optimiser: torch.optim.Optimizer,
    plan: Plan,
    world: World,
    batches: Iterator[Batch],
    step: int,
    since: float,
) -> dict[str, Any]:
    """Take one optimiser step; return its metrics for the log.

    ``samples`` is a checksum of the samples, with their epochs, that the step saw on all ranks together. The speed
    counts all the time since the previous step ended, including reports, checkpoints and evaluations in between.
    """
    started = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - started
    method.train()
    _seed_step(plan.stream.seed, step, world.rank)
    rng = batch.rng(plan.stream.seed)
    with torch.no_grad():
        views = method.drawn(batch, rng)
    with torch.autocast(world.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
        losses = model(views)
    values = mean_over_ranks(losses.logged, world)
    refuse_non_finite(values, step, batch, world)
    rate = optimisers.set_rates(optimiser, plan.schedule, step)
    optimiser.zero_grad(set_to_none=True)
    losses.total.backward()
    optimisers.hold(optimiser, step / plan.total_steps)
    clip = plan.schedule.config.clip_norm
    norm = torch.nn.utils.clip_grad_norm_(method.parameters(), clip if clip else float("inf")).item()
    refuse_non_finite({"gradient norm": norm}, step, batch, world)
    optimiser.step()
    elapsed = time.perf_counter() - since
    return {
        "step": step,
        "epoch": int(batch.epochs[0]),
        "samples": _samples_seen(rng, world),
        **values,
        "lr": rate,
        "grad_norm": norm,
        "samples_per_s": len(batch) * world.size / elapsed,
        "data_wait_share": waited / elapsed,
    }


def _evaluate(trainee: Trainee, method: Method, world: World, state: State, entry: dict[str, Any]) -> State:
    """Add the evaluation's metrics and their names to the step's entry; remember the best evaluation."""
    assert trainee.evaluation is not None
    method.eval()
    metrics = trainee.evaluation.run(method, world)
    entry.update(metrics, judged=list(metrics))
    if not state.best or metrics["score"] > state.best["score"]:
        state = replace(state, best=metrics, best_step=state.step)
    return state


def _metrics(history: list[dict[str, Any]], state: State) -> dict[str, Any]:
    """Return a report's metrics; the best score, by which Ray keeps its checkpoint, is at the top level."""
    best = {"score": state.best["score"]} if state.best and state.best_step == state.step else {}
    return {"history": history, **best}


def _report_due(plan: Plan, step: int, reported: float, world: World) -> bool:
    """Tell whether a report is due after ``step`` steps; rank 0's clock decides for all ranks."""
    if step % plan.report_every_steps:
        return False
    return any_rank(world.rank == 0 and time.perf_counter() - reported >= plan.report_every_s, world)


def _samples_seen(rng: SampleRng, world: World) -> str:
    """Return the sum of the samples' keys over all ranks, which does not depend on how ranks share a batch."""
    total = torch.from_numpy(rng.keys.sum(keepdims=True).view(np.int64)).to(world.device)
    if world.size > 1:
        dist.all_reduce(total)
    return f"{int(total) % 2**64:016x}"


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for drop-path and dropout, so that a resumed run draws what an undisturbed one draws."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
