"""Network: a downstream task's network, built for training, or outlined to be read."""

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from ray.train import Checkpoint
from safetensors.torch import load_file
from torch import Tensor

from data.shards.index import ShardSet
from methods.base import Facts
from methods.downstream import TASKS, Task
from methods.encoders import ENCODERS, Encoder
from methods.encoders.transfer import Transfer
from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import Downstream, EncoderConfig, part_config
from orchestrator.runs.labelled import LabelledSamples, classes_of, downstream_of, labelled_samples
from orchestrator.training import checkpoint as checkpoints
from orchestrator.training.outline import outline, outline_of

NETWORK, NETWORK_CARD = "network.safetensors", "network.json"


def build_network(experiment: Experiment, shards: ShardSet, encoder_path: str | None) -> Task:
    """Build the task's network: initial weights from ``downstream.seed``, the encoder's from its saved weights."""
    task = downstream_of(experiment)
    torch.manual_seed(task.seed)
    config = experiment.downstream_encoder
    encoder = ENCODERS[config.name](config)
    if encoder_path is not None:
        with Checkpoint(encoder_path).as_directory() as folder:
            whole = part_config(experiment.pretrained_encoder, task.part)
            pretrained = config.model_copy(update={"in_channels": whole.in_channels})
            _load_encoder(Path(folder), encoder, pretrained, task.part)
    return _network(task, encoder, shards, labelled_samples(task).train.num_samples)


def trained_network(experiment: Experiment, shards: ShardSet, folder: Path) -> Task:
    """Build the task's network with the weights that a fine-tuning has written into a folder, to judge with it."""
    task = build_network(experiment, shards, None)
    task.network.load_state_dict(load_file(folder / NETWORK))
    return task.eval()


def outline_network(experiment: Experiment, labelled: LabelledSamples) -> Task:
    """Return the task's network without weights, prepared for its samples, to be read."""
    task, config = downstream_of(experiment), experiment.downstream_encoder
    names = tuple(labelled.shards.names_of(TASKS[task.task.name].needs).items())
    held = (task.frozen_levels, _held_until(task, labelled.train.num_samples))
    parts = (labelled.train, labelled.val, labelled.test)
    seen = [hashlib.sha256(classes_of(labelled, part).tobytes()).hexdigest() for part in parts if part]

    def build() -> Task:
        network = _network(task, deepcopy(outline_of(config)), labelled.shards, labelled.train.num_samples)
        prepare(network, experiment, labelled)
        return network

    return outline(("task", task.task.model_dump_json(), config, names, held, *seen), build)


def _network(task: Downstream, encoder: Encoder, shards: ShardSet, num_samples: int) -> Task:
    kind: Any = TASKS[task.task.name]
    steps = task.budget.total_steps(num_samples)
    facts = Facts(num_samples, steps, task.budget.batch_size, shards.names_of(kind.needs))
    return kind(task.task, encoder, facts)


def transfer_of(experiment: Experiment) -> Transfer:
    """Return which tensors the task's encoder takes from the pretrained one; nothing is read.

    Raises ValueError where ``downstream.encoder`` changes a field that weights depend on, other than ``in_channels``.
    """
    task, config = downstream_of(experiment), experiment.downstream_encoder
    whole = part_config(experiment.pretrained_encoder, task.part)
    given = outline_of(whole).state_dict()
    try:
        fitting = outline_of(config.model_copy(update={"in_channels": whole.in_channels}))
        checkpoints.refuse_unmatched(given, fitting, "downstream.encoder")
    except checkpoints.CheckpointError as error:
        raise ValueError(
            f"{str(error).partition('; ')[0]}: {changes_of(experiment)}; change only fields that hold no weights, or "
            "in_channels, or pretrain the encoder as the task needs it"
        ) from None
    return _fitting(given, outline_of(config))


def changes_of(experiment: Experiment) -> str:
    """Name the fields in which the task's encoder differs from the pretrained one, with both values."""
    task, own = downstream_of(experiment), experiment.downstream_encoder
    whole = part_config(experiment.pretrained_encoder, task.part)
    pairs = {name: (getattr(own, name), getattr(whole, name)) for name in task.encoder}
    return ", ".join(f"{name}={new} (pretrained with {old})" for name, (new, old) in pairs.items() if new != old)


def _load_encoder(folder: Path, encoder: Encoder, config: EncoderConfig, part: str) -> Transfer:
    """Load the weights of an encoder of ``config``; weights whose channels differ keep their initial values.

    ``part`` is the part of the saved encoder that they are taken from.
    """
    if encoder.in_channels == config.in_channels:
        return checkpoints.load_encoder(folder, encoder, part)
    pretrained = ENCODERS[config.name](config)
    checkpoints.load_encoder(folder, pretrained, part)
    own, given = encoder.state_dict(), pretrained.state_dict()
    transfer = _fitting(given, encoder)
    encoder.load_state_dict({**own, **{name: given[name] for name in transfer.taken}})
    return transfer


def _fitting(given: Mapping[str, Tensor], encoder: Encoder) -> Transfer:
    """Return which tensors of an encoder have the shape of those given under the same names."""
    shapes = {name: value.shape for name, value in encoder.state_dict().items()}
    taken = tuple(name for name, shape in shapes.items() if name in given and given[name].shape == shape)
    return Transfer(taken, tuple(name for name in shapes if name not in taken))


def prepare(network: Task, experiment: Experiment, labelled: LabelledSamples) -> None:
    """Show a network the classes of its samples; freeze the encoder's levels that the task names."""
    task = downstream_of(experiment)
    for judged_on in filter(None, (labelled.val, labelled.test)):
        network.see_classes(classes_of(labelled, labelled.train), classes_of(labelled, judged_on))
    if task.frozen_levels != 0:
        levels = None if task.frozen_levels == "all" else task.frozen_levels
        network.freeze(levels, _held_until(task, labelled.train.num_samples))


def _held_until(task: Downstream, num_samples: int) -> float:
    """Return the progress in [0, 1] until which levels are frozen."""
    if task.frozen_epochs is None:
        return 1.0
    steps = task.budget.epochs_to_steps(task.frozen_epochs, num_samples)
    return min(1.0, steps / task.budget.total_steps(num_samples))
