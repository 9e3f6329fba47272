"""Memory: what a training takes on one device, computed from sizes alone, without weights."""

from collections.abc import Callable, Hashable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch

from data.views.batch import Batch
from methods.base import Method, Views
from methods.downstream import TASKS
from orchestrator.config.experiment import Experiment
from orchestrator.config.optimiser import Optimiser
from orchestrator.feed import stream
from orchestrator.feed.stream import FeedPlan
from orchestrator.runs.course import Course
from orchestrator.runs.finetune import LabelledSamples, downstream_of, outline_network
from orchestrator.training.outline import outline_views

# Copies of every trainable parameter in float32: weight and gradient, then what the optimiser remembers.
COPIES = {"sgd": 3, "lars": 3, "larc": 3, "adam": 4, "adamw": 4}
# cuDNN's workspaces, the allocator's rounding and the views before the network.
OVERHEAD = 1.2
MEASURED_SAMPLES = 2  # of a single one, some losses cannot be taken


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: what does not depend on the batch, and each sample's share.

    chunked_bytes   the part of each sample's share that is held for only one chunk at a time, if samples pass in
                    chunks
    """

    fixed_bytes: int
    per_sample_bytes: int
    chunked_bytes: int = 0

    def total_bytes(self, samples: int, num_chunks: int = 1) -> float:
        at_once = -(-samples // num_chunks)
        activations = samples * self.per_sample_bytes - (samples - at_once) * self.chunked_bytes
        return OVERHEAD * (self.fixed_bytes + activations)


@dataclass(frozen=True)
class _Measurement:
    """What a method takes: the bytes of its tensors, its trainable numbers, and the bytes held for each sample.

    held_in_chunks_bytes   bytes held if samples pass one by one; ``held_bytes`` if they do not pass in chunks
    """

    everything_bytes: int
    num_trainable: int
    held_bytes: int
    held_in_chunks_bytes: int


# What this process has measured: a table's rows differ mostly in seeds and budgets, and tables share rows.
_MEASURED: dict[Hashable, _Measurement] = {}
# The sizes of each feed's first samples.
_SIZES: dict[Hashable, Hashable] = {}


def stage_memory(course: Course) -> Memory:
    """Return what a stage takes in float32."""
    stage, plan = course.stage, course.feed
    key = (stage.method.model_dump_json(), course.encoder, tuple(course.facts.names))
    in_chunks = course.plan.num_chunks > 1
    return _memory(_measured(course.outline, plan, in_chunks, key), stage.optimiser)


def finetuning_memory(experiment: Experiment, labelled: LabelledSamples, plan: FeedPlan) -> Memory:
    """Return what the fine-tuning takes in float32."""
    task = downstream_of(experiment)
    names = tuple(labelled.shards.names_of(TASKS[task.task.name].needs))
    frozen = (task.frozen_levels, task.frozen_epochs)
    key = (task.task.model_dump_json(), experiment.downstream_encoder, names, frozen)
    outlined = partial(outline_network, experiment, labelled)
    in_chunks = experiment.shares_of(task).num_chunks > 1
    return _memory(_measured(outlined, plan, in_chunks, key), task.optimiser)


def _sets(plan: FeedPlan) -> str:
    """Name what a training is fed from: some patients of a split stand for all of them."""
    return repr([replace(one, patients=None, weight=None) for one in plan.sets])


def _memory(measured: _Measurement, optimiser: Optimiser) -> Memory:
    copies = COPIES[optimiser.name] + optimiser.amsgrad  # the largest second moment, too
    fixed = measured.everything_bytes + (copies - 1) * 4 * measured.num_trainable
    return Memory(fixed, measured.held_bytes, measured.held_bytes - measured.held_in_chunks_bytes)


def _measured(build: Callable[[], Method], plan: FeedPlan, in_chunks: bool, key: Hashable) -> _Measurement:
    """Measure a method with the views of two real samples; methods of one ``key`` take the same of equal samples."""
    fed, batch = (_sets(plan), plan.having), None
    if fed not in _SIZES:
        batch = stream.first_samples(plan, MEASURED_SAMPLES)
        _SIZES[fed] = _sizes(batch)
    key = (key, _SIZES[fed], in_chunks)
    if key not in _MEASURED:
        batch = batch or stream.first_samples(plan, MEASURED_SAMPLES)
        _MEASURED[key] = _measurement(deepcopy(build()), batch, plan.seed, in_chunks)
    return _MEASURED[key]


def _sizes(batch: Batch) -> Hashable:
    """Return all that the sizes of a batch's views depend on."""
    tensors = (batch.voxels, batch.labels, batch.classes)
    boxes = [None if one is None else len(one) for one in batch.boxes or ()]
    return repr([[t is not None and (t.shape, t.dtype) for t in tensors], batch.extents.tolist(), boxes])


def _measurement(method: Method, batch: Batch, seed: int, in_chunks: bool) -> _Measurement:
    with torch.no_grad():
        views = outline_views(method, batch, seed)
    method.to("meta")
    held = held_in_chunks = saved_bytes(method, views) // len(batch)
    if in_chunks:
        method.pass_in_chunks(len(batch))
        held_in_chunks = saved_bytes(method, views) // len(batch)
    return _Measurement(
        everything_bytes=sum(t.numel() * t.element_size() for t in on_device(method)),
        num_trainable=sum(p.numel() for p in method.parameters() if p.requires_grad),
        held_bytes=held,
        held_in_chunks_bytes=held_in_chunks,
    )


def on_device(method: Method) -> list[torch.Tensor]:
    """Return weights and buffers; shares stay in the host's memory."""
    shares = method.shares
    buffers = [buffer for name, buffer in method.named_buffers() if name not in shares]
    return [*method.parameters(), *buffers]


def saved_bytes(method: Method, views: Views) -> int:
    """Return how many bytes of activations the backward pass of ``loss`` would hold."""
    weights = {tensor.untyped_storage() for tensor in (*method.parameters(), *method.buffers())}
    held: set[torch.UntypedStorage] = set()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held.add(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        method.loss(views)
    return sum(storage.nbytes() for storage in held - weights)
