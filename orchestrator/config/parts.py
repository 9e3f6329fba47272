"""The parts of an experiment: samples, method, optimiser, budget, downstream task, and where it all computes."""

from fractions import Fraction
from functools import reduce
from math import floor
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from data.exact import exact
from methods import METHODS
from methods.base import ADDED, FrozenConfig, Method
from methods.downstream import TASKS
from methods.encoders import ENCODERS
from orchestrator.config.computing import Resources
from orchestrator.config.optimiser import Optimiser
from orchestrator.config.refusal import FolderName
from orchestrator.config.samples import Samples, Sets
from orchestrator.config.weights import Start

TRAINABLE: dict[str, type[Method]] = {**METHODS, **TASKS}
"""What a stage can train: a downstream task is a supervised pretraining."""

if TYPE_CHECKING:

    class MethodConfig(FrozenConfig):
        """The fields that every method's config has."""

        name: str

    class EncoderConfig(FrozenConfig):
        """The fields that every encoder's config has."""

        name: str
        spatial_dims: int
        in_channels: int

    class TaskConfig(FrozenConfig):
        """The fields that every downstream task's config has."""

        name: str

    StageMethodConfig = MethodConfig | TaskConfig

else:
    # The registries decide which configs there are; the field ``name`` selects one.
    MethodConfig = Annotated[reduce(or_, (kind.Config for kind in METHODS.values())), Field(discriminator="name")]
    EncoderConfig = Annotated[reduce(or_, (kind.Config for kind in ENCODERS.values())), Field(discriminator="name")]
    TaskConfig = Annotated[reduce(or_, (kind.Config for kind in TASKS.values())), Field(discriminator="name")]
    StageMethodConfig = Annotated[
        reduce(or_, (kind.Config for kind in TRAINABLE.values())), Field(discriminator="name")
    ]


def part_config(encoder: EncoderConfig, part: str, field: str = "downstream.part") -> EncoderConfig:
    """Return the config of an encoder's part of this name; "" is the whole.

    Raises ValueError, which names the field that asks for it, if there is no such part.
    """
    config: Any = encoder
    for name in filter(None, part.split(".")):
        parts = [one for one in type(config).model_fields if hasattr(getattr(config, one), "spatial_dims")]
        if name not in parts:
            raise ValueError(
                f"{field} {part!r}: encoder {config.name} has no such part; expected "
                f"{', '.join(parts) or 'none: it has none'}"
            )
        config = getattr(config, name)
    return config


# What torch, numpy and scikit-learn all take.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Budget(FrozenConfig):
    """How long to train: ``epochs`` over the samples or ``steps``, and the batch over all workers."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    batch_size: int = Field(gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> "Budget":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"budget: epochs={self.epochs}, steps={self.steps}; give exactly one of the two")
        return self

    def check_warm_up(self, optimiser: Optimiser) -> None:
        """Raise ValueError where a budget of epochs ends before the warm-up; a budget of steps may be a quick try."""
        if self.epochs is not None and optimiser.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {optimiser.warmup_epochs:g} exceeds budget.epochs {self.epochs:g}: the rate would "
                "never reach lr; lower optimiser.warmup_epochs, or raise budget.epochs"
            )

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


class Stage(FrozenConfig):
    """One method with its own budget, and where they differ from the experiment's, its own data and encoder.

    name     that of its history and its checkpoints; the stages of an experiment have different names
    method   a pretraining method, or a downstream task: a supervised pretraining on samples with labels
    start    where its encoder begins: ``{weights: FILE}``, also a file of another project (``layout``, ``inflate``);
             or the stages whose encoders its parts take over, such as ``{slices: intra}``, where ``encoder`` is the
             whole. By default it takes over the encoder of the stage before, and the first stage begins with random
             weights
    """

    name: FolderName = "pretrain"
    data: Annotated[Sets | None, ADDED] = None
    encoder: Annotated[EncoderConfig | None, ADDED] = None
    start: Annotated[Start | None, ADDED] = None
    method: StageMethodConfig
    optimiser: Optimiser = Optimiser(lr=1e-3)
    budget: Budget = Budget(epochs=100, batch_size=32)

    @model_validator(mode="after")
    def _warms_up_within_its_budget(self) -> "Stage":
        self.budget.check_warm_up(self.optimiser)
        return self


class Downstream(Samples):
    """A task that an encoder is fine-tuned on and judged by.

    part             the part of the pretrained encoder that is fine-tuned, such as ``slices``; by default all of it
    encoder          changes to fields that no weights depend on, such as ``drop_path`` or ``depth_strides``; or to
                     ``in_channels``, whose weights are then learnt anew
    label_fraction   share of the training patients whose labels are used; a smaller one is part of a larger one
    val_split        the split that chooses the best checkpoint
    test_split       a split that the best checkpoint is scored on once, at the end (``test/...``); by default none
    num_folds, fold  cross-validation: the patients of ``train_split`` are divided into ``num_folds`` parts, and one
                     part is validated on instead of ``val_split``
    frozen_levels    how many of the encoder's levels do not learn, counted from the image, or ``all``
    frozen_epochs    for how many epochs they do not learn (None: to the end); it needs ``frozen_levels``, where 0
                     turns it off
    evaluate_every_epochs      the interval between validations
    evaluate_every_epoch_from  from this epoch on, every epoch is validated
    resources        where it runs, such as on one GPU after a pretraining on eight; fields that are not given come
                     from the experiment's own ``resources``
    """

    section = "downstream"
    task: TaskConfig
    part: Annotated[str, ADDED] = ""
    encoder: dict[str, Any] = Field(default_factory=dict)
    train_split: str = "train"
    val_split: str = "val"
    test_split: Annotated[str | None, ADDED] = None
    label_fraction: float = Field(default=1.0, gt=0, le=1)
    num_folds: int | None = Field(default=None, ge=2)
    fold: int = Field(default=0, ge=0)
    frozen_levels: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    frozen_epochs: float | None = Field(default=None, gt=0)
    optimiser: Optimiser
    budget: Budget
    seed: Seed = 0
    evaluate_every_epochs: float = Field(default=10, gt=0)
    evaluate_every_epoch_from: float | None = Field(default=None, ge=0)
    patience_epochs: float | None = Field(default=None, gt=0)
    resources: Resources | None = None

    @model_validator(mode="after")
    def _warms_up_within_its_budget(self) -> "Downstream":
        self.budget.check_warm_up(self.optimiser)
        return self

    @model_validator(mode="after")
    def _freezes_something(self) -> "Downstream":
        # A row of a table turns the freezing of its experiment off by frozen_levels: 0 alone.
        if self.frozen_epochs is not None and "frozen_levels" not in self.model_fields_set:
            raise ValueError(
                f"frozen_epochs {self.frozen_epochs:g} without frozen_levels: no level would be frozen; give "
                "frozen_levels too, such as all"
            )
        return self

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> "Downstream":
        if self.fold >= (self.num_folds or 1):
            raise ValueError(
                f"fold {self.fold} of num_folds {self.num_folds}; expected 0 to "
                f"{(self.num_folds or 1) - 1}: set downstream.num_folds, or another fold"
            )
        return self

    @model_validator(mode="after")
    def _test_is_held_out(self) -> "Downstream":
        used = {"train_split": self.train_split, **({} if self.num_folds else {"val_split": self.val_split})}
        for name, split in used.items():
            if split == self.test_split:
                raise ValueError(
                    f"test_split {split!r} is {name} too; a test needs samples that nothing is learnt from or chosen "
                    "by: name another split, or leave test_split out"
                )
        return self


class Probe(Samples):
    """A frozen encoder's features judged by a linear model and by neighbours, on samples with classes.

    size         voxels per axis that whole samples are resized to
    times        how often over a pretraining's budget (0: only when asked for, by ``raydiology probe``)
    samples      at most this many of each split, always the same ones
    neighbours   how many neighbours vote for the class of a sample
    grades       whether classes are grades in order of their numbers: ``kappa_quadratic`` instead of ``kappa``
    """

    section = "probe"
    size: PositiveInt | tuple[PositiveInt, ...]
    train_split: str = "train"
    val_split: str = "val"
    times: int = Field(default=4, ge=0)
    samples: int = Field(default=2000, ge=2)
    neighbours: int = Field(default=20, gt=0)
    grades: bool = False
