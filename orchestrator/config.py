"""Experiment: everything that decides a run, as one frozen value.

YAML in (with one ``base:`` to inherit from and ``a.b=c`` overrides), a resolved experiment out. Unknown fields are
errors. Fields that change results go into the run key; fields that say where a run computes (``resources``,
``tracking``, ``home``) do not.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from functools import reduce
from math import floor
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, PositiveInt, field_validator, model_serializer, model_validator

from data.exact import exact
from data.files import shown, without_credentials
from data.keep import Keep
from data.shardset import Having, Selection, ShardSet
from methods import METHODS
from methods.base import Frozen
from methods.downstream import TASKS
from methods.encoders import ENCODERS
from methods.parts.schedule import WarmUp
from orchestrator.provenance import in_job
from orchestrator.refusal import ConfigError, FolderName, validated
from orchestrator.sharing import Shares

if TYPE_CHECKING:

    class MethodConfig(Frozen):
        """The fields that every method's config has."""

        name: str

    class EncoderConfig(Frozen):
        """The fields that every encoder's config has."""

        name: str
        spatial_dims: int
        in_channels: int

    class TaskConfig(Frozen):
        """The fields that every downstream task's config has."""

        name: str

else:
    # The registries decide which configs there are; the field ``name`` selects one.
    MethodConfig = Annotated[reduce(or_, (kind.Config for kind in METHODS.values())), Field(discriminator="name")]
    EncoderConfig = Annotated[reduce(or_, (kind.Config for kind in ENCODERS.values())), Field(discriminator="name")]
    TaskConfig = Annotated[reduce(or_, (kind.Config for kind in TASKS.values())), Field(discriminator="name")]


Beta = Annotated[float, Field(ge=0, lt=1)]


class Samples(Frozen):
    """Samples of some shards; ``keep`` leaves out samples that do not meet its criteria."""

    part: ClassVar[str]
    shards: str
    keep: Keep = Keep()

    _absolute = field_validator("shards")(lambda uri: absolute(uri))

    @model_serializer(mode="wrap")
    def _without_an_empty_filter(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out a filter that keeps everything: it decides nothing, so it is no part of a run key."""
        tree = dump(self)
        return tree if self.keep.criteria else {name: value for name, value in tree.items() if name != "keep"}

    def kept(
        self,
        shards: ShardSet,
        split: str | None,
        patients: Collection[str] | None = None,
        having: Having | None = None,
    ) -> Selection:
        """Select samples of a split that the filter keeps; raise ValueError for a filter that keeps none."""
        try:
            selection = shards.select(split, patients, having, self.keep)
        except ValueError as error:
            raise ValueError(f"{self.part}.{error}") from None
        if selection.num_left_out and selection.num_samples == 0:
            raise ValueError(
                f"{self.part}.keep leaves out all {selection.num_left_out:,} samples of split {split!r} in shards "
                f"{shards.uri}: {self.keep.describe(selection.left_out_by)}; widen {self.part}.keep"
            )
        return selection


class Data(Samples):
    """The samples that a pretraining sees."""

    part = "data"
    split: str | None = "train"

    def selected(self, shards: ShardSet) -> Selection:
        """Select the samples that a pretraining sees; raise ValueError for a split without samples."""
        selection = self.kept(shards, self.split)
        if selection.num_samples == 0:
            splits = ", ".join(sorted(set(shards.rows["split"].to_pylist())))
            raise ValueError(
                f"data.split {self.split!r}: 0 samples in shards {self.shards}, expected at least 1; set data.split "
                f"to one of {splits}, or to null for all of them"
            )
        return selection


class Optimiser(Frozen):
    """Learning rate, warm-up and decay; the schedule advances per step.

    warmup   above_zero: the first step already learns; from_zero and zero_to_peak: as in released code, the first
             step does not learn; see ``warm_up``
    """

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(gt=0)
    final_lr: float = Field(default=0.0, ge=0)
    warmup_epochs: float = Field(default=0.0, ge=0)
    warmup: WarmUp = "above_zero"
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip_norm: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _decays(self) -> "Optimiser":
        if self.final_lr > self.lr:
            raise ValueError(
                f"final_lr {self.final_lr:g} is above lr {self.lr:g}; the rate falls from lr to final_lr: lower "
                "final_lr, or raise lr"
            )
        return self


class Budget(Frozen):
    """How long to train: ``epochs`` over the samples or ``steps``, and the batch over all workers."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    batch_size: int = Field(gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> "Budget":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"budget: epochs={self.epochs}, steps={self.steps}; give exactly one of the two")
        return self

    def total_steps(self, num_samples: int) -> int:
        """Return the number of optimiser steps over ``num_samples`` samples; a last partial batch is not trained."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, floor(exact(self.epochs) * self.steps_per_epoch(num_samples)))

    def epochs_to_steps(self, epochs: float, num_samples: int) -> int:
        """Return the number of steps in some epochs, rounded."""
        return round(exact(epochs) * self.steps_per_epoch(num_samples))

    def steps_per_epoch(self, num_samples: int) -> Fraction:
        """Return the number of steps in which ``num_samples`` samples are seen once; the number need not be whole."""
        return Fraction(num_samples, self.batch_size)


class Stage(Frozen):
    """One method with its own budget; it starts from the encoder of the stage before.

    name   that of its history and its checkpoints; the stages of an experiment have different names
    """

    name: FolderName = "pretrain"
    method: MethodConfig
    optimiser: Optimiser = Optimiser(lr=1e-3)
    budget: Budget = Budget(epochs=100, batch_size=32)


class Resources(Frozen):
    """Where a run computes; nothing here changes results.

    workers           at most this many train: the largest number that can share the batch out evenly
    micro_batch_size  samples of a worker that pass through the network at once, so that activations take less memory;
                      none: the worker's whole share of the batch. The loss is always that of the whole batch
    cpus_per_worker   CPUs of each training worker
    readers           processes that read shards
    reader_resource   a custom resource; each reader takes one, so that readers run on the nodes that have it, such as
                      cluster.yaml's machines for reading
    max_failures      how often a training starts again from its last checkpoint
    storage           folder or bucket for checkpoints that every node reaches (default: the run's own folder)
    """

    workers: int = Field(default=1, gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    gpu: bool = False
    cpus_per_worker: float = Field(default=1, gt=0)
    readers: int = Field(default=1, gt=0)
    max_failures: int = Field(default=3, ge=0)
    reader_resource: str | None = None
    storage: str | None = None

    _absolute = field_validator("storage")(lambda uri: absolute(uri) if uri else None)


class Downstream(Samples):
    """A task that an encoder is fine-tuned on and judged by.

    encoder          changes to fields that have no weights, such as ``drop_path``; or to ``in_channels``, whose
                     weights are then learnt anew
    label_fraction   share of the training patients whose labels are used; a smaller one is part of a larger one
    num_folds, fold  cross-validation: the patients of ``train_split`` are divided into ``num_folds`` parts, and one
                     part is validated on instead of ``val_split``
    frozen_levels    how many of the encoder's levels do not learn, counted from the image, or ``all``
    frozen_epochs    for how many epochs they do not learn (None: to the end)
    evaluate_every_epochs      the interval between validations
    evaluate_every_epoch_from  from this epoch on, every epoch is validated
    resources        where it runs, such as on one GPU after a pretraining on eight; fields that are not given come
                     from the experiment's own ``resources``
    """

    part = "downstream"
    task: TaskConfig
    encoder: dict[str, Any] = Field(default_factory=dict)
    train_split: str = "train"
    val_split: str = "val"
    label_fraction: float = Field(default=1.0, gt=0, le=1)
    num_folds: int | None = Field(default=None, ge=2)
    fold: int = Field(default=0, ge=0)
    frozen_levels: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    frozen_epochs: float | None = Field(default=None, gt=0)
    optimiser: Optimiser
    budget: Budget
    seed: int = 0
    evaluate_every_epochs: float = Field(default=10, gt=0)
    evaluate_every_epoch_from: float | None = Field(default=None, ge=0)
    patience_epochs: float | None = Field(default=None, gt=0)
    resources: Resources | None = None

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> "Downstream":
        if self.fold >= (self.num_folds or 1):
            raise ValueError(
                f"fold {self.fold} of num_folds {self.num_folds}; expected 0 to "
                f"{(self.num_folds or 1) - 1}: set downstream.num_folds, or another fold"
            )
        return self


class Training(Frozen):
    """How steps are computed and how often they are reported and saved.

    report_every_steps, report_every_s   a report is due after this many steps, but not before this many seconds have
                                         passed since the last report, because all workers wait for each other to
                                         report
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    sync_batch_norm: bool = True
    report_every_steps: int = Field(default=10, gt=0)
    report_every_s: float = Field(default=1.0, ge=0)
    checkpoint_every_steps: int = Field(default=200, gt=0)


class Health(Frozen):
    """Label-free metrics of the encoder while it is pretrained: effective rank, collapse, uniformity, alignment.

    times     how often over the budget (0: never)
    samples   how many training samples are measured, always the same ones; the rank is at most this
    """

    times: int = Field(default=10, ge=0)
    samples: int = Field(default=256, ge=2)


class Probe(Samples):
    """A frozen encoder's features judged by a linear model and by neighbours, on samples with classes.

    size         voxels per axis that whole samples are resized to
    times        how often over a pretraining's budget (0: only when asked for, by ``raydiology probe``)
    samples      at most this many of each split, always the same ones
    neighbours   how many neighbours vote for the class of a sample
    grades       whether classes are grades in order of their numbers: ``kappa_quadratic`` instead of ``kappa``
    """

    part = "probe"
    size: PositiveInt | tuple[PositiveInt, ...]
    train_split: str = "train"
    val_split: str = "val"
    times: int = Field(default=4, ge=0)
    samples: int = Field(default=2000, ge=2)
    neighbours: int = Field(default=20, gt=0)
    grades: bool = False


class Tracking(Frozen):
    """The MLflow to use; None is the SQLite store under ``home``, or ``MLFLOW_TRACKING_URI`` if it is set."""

    uri: str | None = None
    pictures: bool = True


class Experiment(Frozen):
    """The complete contents of a YAML file of ``experiments/``.

    ``method``, ``optimiser`` and ``budget`` at the top are the short form of a single stage.
    """

    name: FolderName
    seed: int = 0
    data: Data
    encoder: EncoderConfig
    method: MethodConfig | None = None
    optimiser: Optimiser | None = None
    budget: Budget | None = None
    stages: tuple[Stage, ...] = ()
    downstream: Downstream | None = None
    training: Training = Training()
    health: Health = Health()
    probe: Probe | None = None
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    home: str = Field(default="runs", validate_default=True)

    _absolute = field_validator("home")(lambda path: absolute(_local(path)))

    @model_validator(mode="before")
    @classmethod
    def _inherit_resources(cls, fields: Any) -> Any:
        """Complete ``downstream.resources`` from the experiment's own, so that all of them are shown."""
        match fields:
            case {"downstream": {"resources": dict(own), **task}, "resources": dict(inherited)}:
                return {**fields, "downstream": {**task, "resources": {**inherited, **own}}}
        return fields

    @model_validator(mode="after")
    def _one_form(self) -> "Experiment":
        if (self.method is None) == (not self.stages):
            raise ValueError("give either method (with optimiser and budget) or stages, and not both")
        if self.stages and (self.optimiser or self.budget):
            raise ValueError("with stages, optimiser and budget are fields of each stage, not of the experiment")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages are named {', '.join(names)}; give each a name of its own (stages: name)")
        return self

    @model_validator(mode="after")
    def _encoder_can_be_changed(self) -> "Experiment":
        assert self.downstream_encoder, "its fields are checked as well"
        return self

    @property
    def downstream_encoder(self) -> EncoderConfig:
        """The encoder with the changes that the downstream task makes."""
        changes = self.downstream.encoder if self.downstream else {}
        if not changes:
            return self.encoder
        return validated(type(self.encoder), {**self.encoder.model_dump(), **changes}, "downstream.encoder")

    @property
    def pretraining(self) -> tuple[Stage, ...]:
        """The stages, whether given as ``stages`` or as one ``method``."""
        if self.stages:
            return self.stages
        assert self.method is not None, "held by _one_form"
        given = {"optimiser": self.optimiser, "budget": self.budget}
        return (Stage(method=self.method, **{name: value for name, value in given.items() if value is not None}),)

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

    def pretrain_key(self, digest: str) -> str:
        """Name a pretraining by everything that decides its result: config, dataset digest and seed."""
        return _key("pretrain", self._core(), digest)

    def finetune_key(self, pretrained: str, digest: str) -> str:
        """Name a fine-tuning by the encoder it starts from (a run key or 'scratch'), its config and dataset."""
        assert self.downstream is not None
        core = {
            "downstream": self.downstream.model_dump(mode="json", exclude={"shards", "resources"}),
            "encoder": self.encoder.model_dump(mode="json"),
            "precision": self.training.precision,
            "sync_batch_norm": self.training.sync_batch_norm,
            "pretrained": pretrained,
        }
        return _key("finetune", core, digest)

    def probe_key(self, pretrained: str, digest: str) -> str:
        """Name a probe by the pretraining whose encoder it probes, its config and its dataset."""
        assert self.probe is not None
        core = {"probe": self.probe.model_dump(mode="json", exclude={"shards", "times"}), "pretrained": pretrained}
        return _key("probe", core, digest)

    def _core(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder.model_dump(mode="json"),
            "stages": [stage.model_dump(mode="json") for stage in self.pretraining],
            **self.data.model_dump(mode="json", exclude={"shards"}),
            "seed": self.seed,
            "precision": self.training.precision,
            "sync_batch_norm": self.training.sync_batch_norm,
        }


def absolute(uri: str) -> str:
    """Return a local path as an absolute one; leave addresses such as s3:// alone (Ray changes workers' folders).

    Raises ValueError for a relative path in a submitted job, whose folder is a copy that Ray deletes.
    """
    if "://" in uri:
        return without_credentials(uri)
    path = Path(uri).expanduser()
    if in_job() and not path.is_absolute():
        raise ValueError(
            f"{uri} is relative, so in a job it would lie in the copy of the working directory, which the cluster "
            "deletes; give an absolute folder that every node reaches and that outlives the job, or s3://bucket/folder"
        )
    return str(path.absolute())


def _local(path: str) -> str:
    if "://" in path:
        raise ValueError(
            f"{shown(path)} is remote; expected a folder of the machine that the command runs on; checkpoints go to "
            "a bucket by resources.storage, MLflow to a server by tracking.uri"
        )
    return path


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, its bases and ``a.b=c`` overrides; raise ConfigError for a mistake."""
    return resolve(read(path), overrides, str(path))


def resolve(tree: dict[str, Any], overrides: Sequence[str] = (), source: str = "experiment") -> Experiment:
    """Validate a config tree after applying overrides."""
    for override in overrides:
        tree = merge(tree, _parse_override(override))
    return validated(Experiment, tree, source)


def read(path: str | Path) -> dict[str, Any]:
    """Read a YAML file and what it inherits from through ``base:`` (relative to the file), unvalidated."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"experiment {path}: no such file; experiments/ holds those that come with Raydiology")
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"experiment {path}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"experiment {path}: expected a mapping of fields, found {type(tree).__name__}")
    base = tree.pop("base", None)
    return merge(read(path.parent / base), tree) if base else tree


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Overlay ``changes``: mappings merge, everything else is replaced.

    A mapping whose ``name`` differs from that of the mapping below it (another method, another encoder) replaces it
    whole, because the fields of one mean nothing to the other.
    """
    merged = dict(tree)
    for key, value in changes.items():
        old = merged.get(key)
        if (
            isinstance(value, dict)
            and isinstance(old, dict)
            and value.get("name", old.get("name")) == old.get("name")
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def expand(dotted: dict[str, Any]) -> dict[str, Any]:
    """Turn {"a.b": c} into {"a": {"b": c}}."""
    tree: dict[str, Any] = {}
    for path, value in dotted.items():
        for part in reversed(path.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def _parse_override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {text!r}: expected field.subfield=value, such as method.crops.iou='[0.3,0.6]'")
    try:
        return expand({path: yaml.safe_load(value)})
    except yaml.YAMLError:
        raise ConfigError(f"override {text!r}: {value!r} is not YAML; quote lists, such as '[0.3,0.6]'") from None


def _key(kind: str, core: dict[str, Any], digest: str) -> str:
    text = json.dumps({"kind": kind, "config": core, "digest": digest}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def schema() -> dict[str, Any]:
    """Return the JSON Schema of an experiment file, for editors."""
    tree = Experiment.model_json_schema()
    tree["properties"]["base"] = {"type": "string", "description": "experiment file to inherit from"}
    tree["required"] = []  # a file may leave any field to its base or to an override
    return tree
