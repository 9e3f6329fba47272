"""Method: the contract between a pretraining (or a downstream task) and the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Shaped
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from data.additions import ADDED
from data.labels import Labels
from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.parts.chunks import InChunks
from methods.parts.shares import ShareHolder, shares_of

if TYPE_CHECKING:
    from methods.encoders.base import Encoder


class FrozenConfig(BaseModel):
    """A config: immutable; unknown fields and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def decisive(config: BaseModel, exclude: set[str] | None = None) -> dict[str, Any]:
    """Return, as JSON values, the fields of a config that decide a result: all but additions at their defaults."""
    tree = config.model_dump(mode="json", exclude=exclude)
    for name, field_ in type(config).model_fields.items():
        value = getattr(config, name)
        if name not in tree:
            continue
        if ADDED in field_.metadata and value == field_.get_default(call_default_factory=True):
            del tree[name]
        elif isinstance(value, BaseModel):
            tree[name] = decisive(value)
        elif isinstance(value, tuple) and value and all(isinstance(part, BaseModel) for part in value):
            tree[name] = [decisive(part) for part in value]
    return tree


@dataclass(frozen=True)
class Views:
    """The cut and augmented inputs of ``loss``.

    images   of one or several sizes
    boxes    for each image, on the host: low and high corners in the stored sample, to draw pictures
    targets  what a pretext task or a downstream task has to predict
    rows     each sample's place among all samples of the training, set by ``Method.drawn``
    """

    images: tuple[Float[Tensor, "B C ..."], ...]
    boxes: tuple[Int64[np.ndarray, "B 2 n"], ...] = ()
    targets: dict[str, Tensor] = field(default_factory=dict)
    rows: Int64[Tensor, " B"] | None = None


@dataclass(frozen=True)
class Facts:
    """What is fixed before a training starts.

    num_samples    N samples are trained on; ``Views.rows`` are below it
    steps          optimiser steps of the whole budget
    batch_size     samples of a step, over all ranks
    names          what the numbers of the labels that the method needs are called
    """

    num_samples: int
    steps: int
    batch_size: int
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a training is: ``step`` of ``steps`` are done, and ``epoch`` whole passes over the samples."""

    step: int
    steps: int
    epoch: int

    @property
    def share(self) -> float:
        """The share of the budget that is spent, in [0, 1]."""
        return self.step / self.steps


LOSS_OF_CONSTANT = "loss_of_constant"


@dataclass(frozen=True)
class Losses:
    """The scalar to minimise, and named, detached scalars to log beside it.

    ``of_constant`` is the loss of the best prediction that does not look at the images, on the same targets. A
    network whose loss stays there has learnt nothing from them.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Shaped[Tensor, ""]] = field(default_factory=dict)
    of_constant: Float[Tensor, ""] | None = None

    @property
    def logged(self) -> dict[str, Tensor]:
        """What is logged of a step, the loss first."""
        beside = {} if self.of_constant is None else {LOSS_OF_CONSTANT: self.of_constant.detach()}
        return {"loss": self.total, **beside, **self.parts}


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share weight decay, learning-rate schedule and the progress at which they start to learn."""

    params: list[nn.Parameter]
    decay: bool = True
    schedule: Literal["budget", "constant"] = "budget"
    starts_at: float = 0.0


class Method(ShareHolder, ABC):
    """One pretraining method. It never sees Ray, a device, the optimiser, the logger, files or epochs.

    Under ``precision: bf16`` the loop calls a method under autocast. Modules that compute on maps follow autocast:
    encoder, decoder, skip blocks. Heads and losses compute in float32 nevertheless. A head turns the last map into
    embeddings, logits or voxels; the head of a dense network is its last layer, which computes the logits. Heads are
    built from ``parts/precision.py``, losses are functions under its ``full_precision``.

    It is built from its config, the encoder and the ``Facts`` of the training.

    State that must survive a restart (queue, memory bank, teacher) is registered as buffers or modules. State of
    which each rank holds a part is a share (``parts/shares.py``): data-parallel training leaves it alone, a
    checkpoint holds all parts, and a resumed training divides them among the ranks that it has.

    ``needs`` says which labels the loss wants: samples without them are left out. ``trains`` is False for
    ``scratch``, which has nothing to optimise. ``positives`` says that the first two images of ``views`` are two
    views of a sample, whose features should be alike. ``averages`` says that the loss sees only the mean over space
    of an encoder's map. ``encoders`` names the only encoders that it can train; by default, any. ``why_no_constant``
    says why ``Losses.of_constant`` is None, where a constant prediction has no loss to compare with.
    """

    Config: ClassVar[type[FrozenConfig]]
    trains: ClassVar[bool] = True
    positives: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    needs: ClassVar[Labels | None] = None
    encoders: ClassVar[tuple[str, ...]] = ()
    why_no_constant: ClassVar[str] = ""
    encoder: "Encoder"

    @classmethod
    def takes(cls, encoder: "Encoder") -> tuple[int, int]:
        """Return spatial dimensions and channels of the samples that are fed; by default the encoder's own."""
        return encoder.spatial_dims, encoder.in_channels

    @abstractmethod
    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut and augment a batch on its own device; pure given ``rng``."""

    @abstractmethod
    def loss(self, views: Views) -> Losses:
        """Compute the loss: tensors in, tensors out."""

    def drawn(self, batch: Batch, rng: SampleRng) -> Views:
        """Return ``views`` with the rows of their samples."""
        return replace(self.views(batch, rng), rows=torch.tensor(batch.rows, device=batch.voxels.device))

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError where samples of this spatial size cannot be trained on."""

    def see_classes(self, trained_on: Int[np.ndarray, "n m"], judged_on: Int[np.ndarray, "k l"]) -> None:
        """Inspect the classes of all samples, padded with -1, before anything starts.

        Raises ValueError where the classes do not fit the method.
        """

    def doubts(self) -> tuple[str, ...]:
        """Say, before a training starts and with numbers, why it can run but will hardly learn."""
        return ()

    def param_groups(self) -> list[ParamGroup]:
        """Return every trainable parameter once; by default no decay on norms and biases (1-D tensors)."""
        return split_decay(p for p in self.parameters() if p.requires_grad)

    def pass_in_chunks(self, num_chunks: int) -> None:
        """Pass images through the encoder in ``num_chunks`` chunks, to save memory for activations."""
        for module in self.modules():
            if isinstance(module, InChunks):
                module.num_chunks = num_chunks

    def chunked(self) -> nn.Module:
        """Return the network that images pass in chunks."""
        return self.encoder

    def trained_in_chunks(self) -> Iterator[nn.Module]:
        """Yield the modules of the network that images pass in chunks."""
        return self.chunked().modules()

    @property
    def shares(self) -> tuple[str, ...]:
        """The names of the shares, also those of parts."""
        return shares_of(self)

    def after_step(self, progress: Progress) -> None:
        """Update what no gradient trains, such as a teacher."""

    def after_epoch(self, progress: Progress) -> None:
        """Update what needs all samples, such as clusters.

        Called after the step in which an epoch's last sample was seen, on all ranks at the same step.
        """

    def forward(self, views: Views) -> Losses:
        """Call ``loss``: torch's data-parallel wrapper hooks ``forward``."""
        return self.loss(views)


def split_decay(params: Any, schedule: Literal["budget", "constant"] = "budget") -> list[ParamGroup]:
    """Split parameters into those with weight decay and those without (1-D tensors: norms and biases)."""
    params = list(params)
    groups = [
        ParamGroup([p for p in params if p.ndim > 1], decay=True, schedule=schedule),
        ParamGroup([p for p in params if p.ndim <= 1], decay=False, schedule=schedule),
    ]
    return [group for group in groups if group.params]
