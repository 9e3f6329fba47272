"""Method: the contract between a pretraining (or a downstream task) and the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from data.batch import Batch
from data.rng import SampleRng
from methods.parts.chunks import InChunks


class Frozen(BaseModel):
    """A config: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Views:
    """What ``loss`` needs, cut and augmented.

    images   tensors (B, C, *size) float32
    boxes    one (B, 2, n) int64 host array per image: low and high corners in the stored sample, for pictures
    targets  tensors that a pretext task or a downstream task is trained against
    """

    images: tuple[Tensor, ...]
    boxes: tuple[np.ndarray, ...] = ()
    targets: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Losses:
    """The scalar that is minimised, and named scalars that are logged beside it (detached)."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share weight decay and learning-rate schedule, and learn from some progress in [0, 1] on."""

    params: list[nn.Parameter]
    decay: bool = True
    schedule: Literal["budget", "constant"] = "budget"
    starts_at: float = 0.0


class Method(nn.Module, ABC):
    """One pretraining method. It never sees Ray, a device, the optimiser, the logger, files or epochs.

    Under ``precision: bf16`` the loop calls it under autocast. What computes on maps follows autocast: the encoder, a
    decoder, skip blocks. Heads and losses compute in float32 all the same: a head is whatever turns the last map into
    embeddings, logits or voxels, and of a dense network the last layer, the one that gives logits. Heads are built
    from ``parts/precision.py``, losses are functions under its ``full_precision``.

    State that must survive a restart (queue, memory bank, teacher) is registered as buffers or modules.
    ``trains`` is False for ``scratch``, which has nothing to optimise. ``positives`` says that the first two images
    of ``views`` show the same in two ways, so that their features should be alike. ``averages`` says that the loss
    sees no more of an encoder's map than its mean over space.
    """

    Config: ClassVar[type[Frozen]]
    trains: ClassVar[bool] = True
    positives: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    encoder: nn.Module

    @abstractmethod
    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut and augment a batch on its own device; pure given ``rng``."""

    @abstractmethod
    def loss(self, views: Views) -> Losses:
        """Compute the loss: tensors in, tensors out."""

    def check_extent(self, extent: tuple[int, ...]) -> None:
        """Raise ValueError, in words, where samples of this spatial size cannot be trained on."""

    def param_groups(self) -> list[ParamGroup]:
        """Return every trainable parameter once; by default no decay on norms and biases (1-D tensors)."""
        return split_decay(p for p in self.parameters() if p.requires_grad)

    def pass_in_chunks(self, num_chunks: int) -> None:
        """Have images pass the encoder in so many chunks, so that less memory holds activations."""
        for module in self.modules():
            if isinstance(module, InChunks):
                module.num_chunks = num_chunks

    def chunked(self) -> nn.Module:
        """Return what images pass in chunks."""
        return self.encoder

    def trained_in_chunks(self) -> Iterator[nn.Module]:
        """Yield the parts of what images pass in chunks."""
        return self.chunked().modules()

    def after_step(self, progress: float) -> None:
        """Update what is not learnt by gradient (a teacher, say); ``progress`` in [0, 1] is the budget spent."""

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
