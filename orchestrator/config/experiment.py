"""Experiment: everything that decides a run, as one frozen value.

Unknown fields are errors. Fields that change results go into the run key; fields that say where a run computes
(``resources``, ``tracking``, ``home``) do not.
"""

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field, model_validator

from methods.base import ADDED, FrozenConfig, decisive
from orchestrator.config.computing import Health, Resources, Tracking, Training
from orchestrator.config.parts import (
    TRAINABLE,
    Budget,
    Downstream,
    EncoderConfig,
    MethodConfig,
    Optimiser,
    Probe,
    Seed,
    Stage,
    part_config,
)
from orchestrator.config.paths import LocalPath
from orchestrator.config.refusal import FolderName, validated
from orchestrator.config.samples import Data, Mix, Sets
from orchestrator.config.sharing import Shares
from orchestrator.config.weights import Start, WeightsFile, check_start


class Experiment(FrozenConfig):
    """The complete contents of a YAML file of ``experiments/``.

    ``method``, ``optimiser`` and ``budget`` at the top are the short form of a single stage.
    """

    name: FolderName
    seed: Seed = 0
    data: Sets
    encoder: EncoderConfig
    method: MethodConfig | None = None
    optimiser: Optimiser | None = None
    budget: Budget | None = None
    start: Annotated[WeightsFile | None, ADDED] = None
    stages: tuple[Stage, ...] = ()
    downstream: Downstream | None = None
    training: Training = Training()
    health: Health = Health()
    probe: Probe | None = None
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    home: LocalPath = Field(default="runs", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _inherit_resources(cls, fields: Any) -> Any:
        """Complete ``downstream.resources`` from the experiment's own, so that all of them are shown."""
        match fields:
            case {"downstream": {"resources": dict(own), **task}, "resources": dict(inherited)}:
                return {**fields, "downstream": {**task, "resources": {**inherited, **own}}}
            case _:
                return fields

    @model_validator(mode="after")
    def _one_form(self) -> "Experiment":
        if (self.method is None) == (not self.stages):
            raise ValueError("give either method (with optimiser and budget) or stages, and not both")
        if self.stages and (self.optimiser or self.budget):
            raise ValueError("with stages, optimiser and budget are fields of each stage, not of the experiment")
        if self.stages and self.start:
            raise ValueError("with stages, start is a field of each stage, not of the experiment")
        idle = [stage.name for stage in self.stages if not TRAINABLE[stage.method.name].trains]
        if idle and len(self.stages) > 1:
            raise ValueError(f"stage {idle[0]}: its method trains nothing; leave it out")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages are named {', '.join(names)}; give each a name of its own (stages: name)")
        return self

    @model_validator(mode="after")
    def _stages_start_from_stages_before(self) -> "Experiment":
        for place, stage in enumerate(self.pretraining):
            earlier = self.pretraining[:place]
            names = [one.name for one in earlier]
            named = [] if isinstance(stage.start, WeightsFile) else list((stage.start or {}).values())
            if unknown := [name for name in named if name not in names]:
                raise ValueError(
                    f"stage {stage.name}: start names {unknown[0]!r}, which is no stage before it; expected one of "
                    f"{', '.join(names) or 'none: it is the first'}"
                )
            if earlier and stage.start is None and self.encoder_of(stage) != self.encoder_of(earlier[-1]):
                raise ValueError(
                    f"stage {stage.name}: its encoder is not that of stage {names[-1]}; say where it begins, by "
                    "start: {PART: STAGE} or start: {weights: FILE}"
                )
        return self

    @model_validator(mode="after")
    def _weights_suit_their_encoders(self) -> "Experiment":
        for stage in self.pretraining:
            if isinstance(start := stage.start, WeightsFile):
                try:
                    check_start(start, part_config(self.encoder_of(stage), start.part, "start.part"))
                except ValueError as error:
                    raise ValueError(f"stage {stage.name}: {error}" if self.stages else str(error)) from None
        return self

    @model_validator(mode="after")
    def _methods_train_their_encoders(self) -> "Experiment":
        for stage in self.pretraining:
            trained, encoder = TRAINABLE[stage.method.name].encoders, self.encoder_of(stage).name
            if trained and encoder not in trained:
                where = f"stage {stage.name}: " if self.stages else ""
                raise ValueError(
                    f"{where}method {stage.method.name} cannot train encoder {encoder}; expected encoder "
                    f"{' or '.join(trained)}: set encoder.name={trained[0]}, or take another method"
                )
        return self

    @model_validator(mode="after")
    def _warms_up_within_its_budget(self) -> "Experiment":
        if self.method is not None:
            defaults = Stage(method=self.method)
            (self.budget or defaults.budget).check_warm_up(self.optimiser or defaults.optimiser)
        return self

    @model_validator(mode="after")
    def _encoder_can_be_changed(self) -> "Experiment":
        assert self.downstream_encoder, "its fields are checked as well"
        return self

    @property
    def downstream_encoder(self) -> EncoderConfig:
        """The encoder, or the part of it that the downstream task takes, with the task's changes."""
        if self.downstream is None:
            return self.pretrained_encoder
        changes, encoder = self.downstream.encoder, part_config(self.pretrained_encoder, self.downstream.part)
        if not changes:
            return encoder
        return validated(type(encoder), {**encoder.model_dump(), **changes}, "downstream.encoder")

    @property
    def pretrained_encoder(self) -> EncoderConfig:
        """The encoder that the last stage trains."""
        return self.encoder_of(self.pretraining[-1])

    def encoder_of(self, stage: Stage) -> EncoderConfig:
        """Return a stage's encoder: its own, or the experiment's."""
        return stage.encoder or self.encoder

    def data_of(self, stage: Stage) -> tuple[Data, ...]:
        """Return a stage's data: its own, or the experiment's; one or several shard sets."""
        data = stage.data or self.data
        return (data,) if isinstance(data, Data) else data

    @property
    def pretrained_on(self) -> tuple[str, ...]:
        """The addresses of all shards that the stages are fed, each once."""
        return tuple(dict.fromkeys(data.shards for stage in self.pretraining for data in self.data_of(stage)))

    def seed_of(self, training: Stage | Downstream) -> int:
        """Return the seed of a training's order and random streams.

        The first stage's is the experiment's; later stages have others, and the fine-tuning has its own.
        """
        if isinstance(training, Downstream):
            return training.seed
        if training == self.pretraining[0]:
            return self.seed
        digest = hashlib.sha256(f"{self.seed}/{training.name}".encode()).digest()
        return int.from_bytes(digest[:4], "little")

    def start_of(self, stage: Stage) -> Start:
        """Return where a stage's encoder begins: a file, or the stages that its parts come from; "" is the whole."""
        if isinstance(stage.start, WeightsFile):
            return stage.start
        if stage.start is not None:
            return {"" if part == "encoder" else part: name for part, name in stage.start.items()}
        place = self.pretraining.index(stage)
        return {"": self.pretraining[place - 1].name} if place else {}

    @property
    def pretraining(self) -> tuple[Stage, ...]:
        """The stages, whether given as ``stages`` or as one ``method``."""
        if self.stages:
            return self.stages
        assert self.method is not None, "held by _one_form"
        given: dict[str, Any] = {"optimiser": self.optimiser, "budget": self.budget, "start": self.start}
        return (Stage(method=self.method, **{name: value for name, value in given.items() if value is not None}),)

    @property
    def trains(self) -> bool:
        """Whether anything is pretrained: ``scratch`` trains nothing."""
        return any(TRAINABLE[stage.method.name].trains for stage in self.pretraining)

    @property
    def hands_over(self) -> bool:
        """Whether a fine-tuning begins with the pretraining's encoder, which was trained or read from a file."""
        return self.trains or any(isinstance(stage.start, WeightsFile) for stage in self.pretraining)

    @property
    def trainings(self) -> tuple[Stage | Downstream, ...]:
        """The stages, and the fine-tuning if there is one."""
        return (*self.pretraining, *([self.downstream] if self.downstream else []))

    def resources_of(self, training: Stage | Downstream) -> Resources:
        """Return the resources of a stage or the fine-tuning, with only as many workers as share its batch."""
        return self._given_resources(training).model_copy(update={"workers": self.shares_of(training).workers})

    def shares_of(self, training: Stage | Downstream) -> Shares:
        """Return how a batch of a stage or of the fine-tuning is shared out over the workers."""
        resources = self._given_resources(training)
        return Shares(training.budget.batch_size, resources.workers, resources.micro_batch_size)

    def idle_workers(self, training: Stage | Downstream) -> str | None:
        """Say why workers of a stage or of the fine-tuning stay idle, and which batch would use all; or None."""
        name = "downstream.budget.batch_size" if isinstance(training, Downstream) else "budget.batch_size"
        return self.shares_of(training).remark(name)

    def _given_resources(self, training: Stage | Downstream) -> Resources:
        own = training.resources if isinstance(training, Downstream) else None
        return own or self.resources

    def pretrain_key(self, digest: str, segment: dict[str, Any] | None = None) -> str:
        """Name a pretraining by everything that decides its result: config, dataset digest, seed, and which part."""
        return _key("pretrain", {**self._core(), **({"segment": segment} if segment else {})}, digest)

    def finetune_key(self, pretrained: str, digest: str) -> str:
        """Name a fine-tuning by the encoder it starts from (a run key or 'scratch'), its config and dataset."""
        assert self.downstream is not None
        core = {
            "downstream": decisive(self.downstream, {"shards", "resources"}),
            "encoder": decisive(self.pretrained_encoder),
            "precision": self.training.precision,
            "sync_batch_norm": self.training.sync_batch_norm,
            "pretrained": pretrained,
        }
        return _key("finetune", core, digest)

    def probe_key(self, pretrained: str, digest: str) -> str:
        """Name a probe by the pretraining whose encoder it probes, its config and its dataset."""
        assert self.probe is not None
        core = {"probe": decisive(self.probe, {"shards", "times"}), "pretrained": pretrained}
        return _key("probe", core, digest)

    def _core(self) -> dict[str, Any]:
        return {
            "encoder": decisive(self.encoder),
            "stages": [_decisive(stage) for stage in self.pretraining],
            **_decisive_data(self.data),
            "seed": self.seed,
            "precision": self.training.precision,
            "sync_batch_norm": self.training.sync_batch_norm,
        }


def _decisive(stage: Stage) -> dict[str, Any]:
    """Return what decides a stage's result, without addresses: what lies there is in the digest."""
    tree = decisive(stage)
    tree.get("start", {}).pop("weights", None)
    return {**tree, **({"data": _decisive_data(stage.data)} if stage.data else {})}


def _decisive_data(data: Data | Mix) -> dict[str, Any]:
    if isinstance(data, Data):
        return decisive(data, {"shards"})
    return {"sets": [decisive(one, {"shards"}) for one in data]}


def _key(kind: str, core: dict[str, Any], digest: str) -> str:
    text = json.dumps({"kind": kind, "config": core, "digest": digest}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
