"""Estimate: what an experiment would do and need, said before it is run (``--dry-run``)."""

from dataclasses import dataclass

import torch
from rich.console import Group
from rich.syntax import Syntax
from rich.table import Table

from data.shardset import ShardSet
from methods import METHODS
from methods.base import Method, Views
from orchestrator import feed
from orchestrator.config import Experiment, Optimiser, Stage
from orchestrator.pretrain import build_encoder, check, stage_feed, stage_plan

# Copies of every trainable parameter in float32: weight and gradient, then what the optimiser remembers.
COPIES = {"sgd": 3, "adam": 4, "adamw": 4}
# cuDNN's workspaces, the allocator's rounding and the views before the network.
OVERHEAD = 1.2
MEASURED_SAMPLES = 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: what does not depend on the batch, and each sample's share.

    chunked_bytes   of each sample's share, what is held of one chunk at a time where samples pass in chunks
    """

    fixed_bytes: int
    per_sample_bytes: int
    chunked_bytes: int = 0

    def total_bytes(self, samples: int, num_chunks: int = 1) -> float:
        at_once = -(-samples // num_chunks)
        activations = samples * self.per_sample_bytes - (samples - at_once) * self.chunked_bytes
        return OVERHEAD * (self.fixed_bytes + activations)


def describe(experiment: Experiment) -> Group:
    """Say what would run: the resolved config, then samples, steps, memory and size per stage, and doubts.

    Raises ValueError in words where it could not run.
    """
    shards = ShardSet.open(experiment.data.shards)
    selection = experiment.data.selected(shards)
    check(experiment, shards, selection)
    table = Table("stage", "method", "samples", "epochs", "steps", "GPU memory per worker", "held for reading")
    for stage in experiment.pretraining:
        if not METHODS[stage.method.name].trains:
            table.add_row(stage.name, stage.method.name, str(selection.num_samples), "0", "0", "-", "-")
            continue
        plan = stage_plan(experiment, stage, shards, selection.num_samples)
        feed_plan = stage_feed(experiment, stage, shards, plan)
        memory = stage_memory(experiment, stage, feed_plan)
        per_worker = feed_plan.samples_per_step
        epochs = plan.total_steps * stage.budget.batch_size / selection.num_samples
        table.add_row(
            stage.name,
            stage.method.name,
            f"{selection.num_samples:,}",
            f"{epochs:.1f}",
            f"{plan.total_steps:,}",
            f"about {memory.total_bytes(per_worker, plan.num_chunks) / 2**30:.1f} GiB",
            f"{feed.bytes_in_flight(feed_plan) / 2**20:.0f} MiB",
        )
    size = f"shards {shards.digest[:12]}: {shards.num_samples:,} samples, {shards.num_bytes / 2**20:,.0f} MiB on disk"
    if selection.num_left_out:
        left_out = experiment.data.keep.describe(selection.left_out_by)
        size += f"; data.keep leaves out {selection.num_left_out:,} of its split ({left_out})"
    resolved = Syntax(experiment.model_dump_json(indent=2), "json", background_color="default")
    idle = [experiment.idle_workers(training) for training in experiment.trainings]
    return Group(resolved, table, size, *filter(None, idle), *_doubts(experiment))


def _doubts(experiment: Experiment) -> list[str]:
    """Say of each stage where it can run but will hardly learn."""
    if build_encoder(experiment).means_differ:
        return []
    return [
        f"stage {stage.name}: {stage.method.name} averages the last map, whose means are nearly the same for all "
        f"images after the instance norm of encoder {experiment.encoder.name}: it will hardly learn; "
        "set encoder.norm=batch"
        for stage in experiment.pretraining
        if METHODS[stage.method.name].averages
    ]


def stage_memory(experiment: Experiment, stage: Stage, plan: feed.FeedPlan) -> Memory:
    """Measure a stage's memory by a forward pass of two real samples on the CPU, in float32."""
    method = METHODS[stage.method.name](stage.method, build_encoder(experiment))
    batch = next(feed.local_batches(plan, rank=0)).take(MEASURED_SAMPLES)
    with torch.no_grad():
        views = method.views(batch, batch.rng(experiment.seed))
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    everything = sum(t.numel() * t.element_size() for t in (*method.parameters(), *method.buffers()))
    fixed = everything + (_copies(stage.optimiser) - 1) * 4 * trainable
    held = saved_bytes(method, views) // len(batch)
    if experiment.shares_of(stage).num_chunks == 1:
        return Memory(fixed, held)
    method.pass_in_chunks(len(batch))
    return Memory(fixed, held, held - saved_bytes(method, views) // len(batch))


def saved_bytes(method: Method, views: Views) -> int:
    """Return how many bytes of activations the backward pass of ``loss`` would hold."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*method.parameters(), *method.buffers())}
    held: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        method.loss(views)
    return sum(held.values())


def _copies(optimiser: Optimiser) -> int:
    return COPIES[optimiser.name]
