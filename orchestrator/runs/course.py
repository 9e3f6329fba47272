"""Course: a stage of a pretraining with its samples: what it is fed, how long it trains, and what is built."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from ray.train import Checkpoint

from data.files import read_bytes
from data.labels import Labels
from data.shards.index import ShardSet
from data.shards.mixture import Component, Mixture, joint_digest
from methods.base import Facts, Method
from methods.encoders import ENCODERS, Encoder
from methods.encoders.transfer import Transfer
from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import TRAINABLE, EncoderConfig, Stage
from orchestrator.config.weights import WeightsFile
from orchestrator.feed.plan import FeedPlan, SetPlan
from orchestrator.runs.plans import feed_plan, training_plan
from orchestrator.training.checkpoint import load_encoder, weights_file
from orchestrator.training.loop import Plan
from orchestrator.training.outline import outline_method, outline_of
from orchestrator.training.start import begin, transfer_from


@dataclass(frozen=True)
class Course:
    """Stage number ``index`` of an experiment, and the samples that it is fed."""

    experiment: Experiment
    index: int
    samples: Mixture

    @classmethod
    def open(cls, experiment: Experiment, index: int = 0, opened: Mapping[str, ShardSet] | None = None) -> "Course":
        """Open a stage's shards, if they are not opened yet; raise ValueError if it has no samples."""
        stage, components = experiment.pretraining[index], []
        for data in experiment.data_of(stage):
            shards = opened[data.shards] if opened else ShardSet.open(data.shards)
            selection = data.selected(shards, TRAINABLE[stage.method.name].needs)
            components.append(Component(shards, selection, data.weight))
        return cls(experiment, index, Mixture(components))

    @property
    def stage(self) -> Stage:
        return self.experiment.pretraining[self.index]

    @property
    def encoder(self) -> EncoderConfig:
        return self.experiment.encoder_of(self.stage)

    @property
    def trains(self) -> bool:
        return TRAINABLE[self.stage.method.name].trains

    @property
    def needs(self) -> Labels | None:
        return TRAINABLE[self.stage.method.name].needs

    @property
    def facts(self) -> Facts:
        """What the method is told of its training."""
        return Facts(
            num_samples=self.samples.num_samples,
            steps=self.stage.budget.total_steps(self.samples.num_samples),
            batch_size=self.stage.budget.batch_size,
            names=self.samples.names_of(self.needs) if self.needs else {},
        )

    @cached_property
    def plan(self) -> Plan:
        """The stage's budget in steps, and how they are computed."""
        return training_plan(self.experiment, self.stage, self.samples.num_samples, self.samples.digest)

    @cached_property
    def feed(self) -> FeedPlan:
        """The feed of the stage's samples, from its first step to its last."""
        sets = tuple(
            SetPlan(one.shards, shards.digest, one.split, None, one.keep, one.weight)
            for one, shards in zip(self.experiment.data_of(self.stage), self.samples.shard_sets, strict=True)
        )
        return feed_plan(self.experiment, self.stage, self.plan, sets, self.needs)

    def outline(self) -> Method:
        """Return the method without weights, to be read."""
        return outline_method(self.stage.method, self.encoder, self.facts)

    def doubts(self) -> list[str]:
        """Say where the stage can run but will hardly learn."""
        found = list(self.outline().doubts())
        if TRAINABLE[self.stage.method.name].averages and not outline_of(self.encoder).means_differ:
            found.append(
                f"{self.stage.method.name} averages the last map, whose means are nearly the same for all images "
                f"after the instance norm of encoder {self.encoder.name}: it will hardly learn; set "
                "encoder.norm=batch"
            )
        return [f"stage {self.stage.name}: {doubt}" for doubt in found]

    def build(self, before: Mapping[str, str] | None = None) -> Method:
        """Build the method on its encoder; ``before`` holds the addresses of what earlier stages trained, by name.

        Without it, the encoder has its initial weights. Raises CheckpointError for weights that do not fit.
        """
        encoder = initial_encoder(self.experiment, self.encoder)
        if before is not None:
            for part, address in self.starts(before).items():
                with Checkpoint(address).as_directory() as folder:
                    load_encoder(Path(folder), part_of(encoder, part))
            if isinstance(start := self.stage.start, WeightsFile):
                begin(part_of(encoder, start.part), start)
        return TRAINABLE[self.stage.method.name](self.stage.method, encoder, self.facts)

    @cached_property
    def transfer(self) -> Transfer | None:
        """What the encoder, or its part, takes from the file of weights that it starts from, if it does.

        Raises CheckpointError if they do not fit.
        """
        start = self.stage.start
        if not isinstance(start, WeightsFile):
            return None
        return transfer_from(start, part_of(outline_of(self.encoder), start.part))

    def start_said(self) -> str | None:
        """Say what the encoder takes from the file of weights that it starts from, if it does."""
        start = self.stage.start
        if not isinstance(start, WeightsFile):
            return None
        how = f"layout {start.layout}" + (f", inflate {start.inflate}" if start.inflate else "")
        part = f" in part {start.part}" if start.part else ""
        name = Path(start.weights).name
        return f"stage {self.stage.name} begins with weights {name} ({how}){part}: {self.transfer}"

    def starts(self, before: Mapping[str, str]) -> dict[str, str]:
        """Return the addresses of the weights that the encoder's parts start from, by part; "" is the whole."""
        start = self.experiment.start_of(self.stage)
        if isinstance(start, WeightsFile):
            return {}
        return {part: before[stage] for part, stage in start.items() if stage in before}


def courses(experiment: Experiment) -> list[Course]:
    """Open all stages of an experiment, and shared shards once; raise ValueError if a stage has no samples."""
    opened = {uri: ShardSet.open(uri) for uri in experiment.pretrained_on}
    return [Course.open(experiment, index, opened) for index in range(len(experiment.pretraining))]


def initial_encoder(experiment: Experiment, config: EncoderConfig) -> Encoder:
    """Build an encoder with its initial weights drawn from the experiment's seed."""
    torch.manual_seed(experiment.seed)
    return ENCODERS[config.name](config)


def part_of(encoder: Encoder, part: str) -> Encoder:
    """Return an encoder's part of this name, itself an encoder; "" is the whole. Raises ValueError for no part."""
    parts = {name: module for name, module in encoder.named_modules() if isinstance(module, Encoder)}
    if part not in parts:
        known = ", ".join(name for name in parts if name) or "it has none"
        raise ValueError(f"start: the encoder has no part {part!r} that is an encoder ({known}); name another")
    return parts[part]


def digest_of(stages: Sequence[Course]) -> str:
    """Return one digest of all that a pretraining reads: its shards, and the weights that it starts from."""
    read = [course.samples.digest for course in stages]
    for course in stages:
        if isinstance(start := course.stage.start, WeightsFile):
            read.append(hashlib.sha256(read_bytes(str(weights_file(Path(start.weights))))).hexdigest())
    return joint_digest(read)
