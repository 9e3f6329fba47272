"""Distillation: a teacher's centred and sharpened outputs are what the student predicts.

Paper:     Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, section 3.1.
Reference: facebookresearch/dino @ 7c446df, ``main_dino.py`` and ``vision_transformer.py``.
Shapes:    V views of B samples, k outputs, d dimensions.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, Tag
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Progress
from methods.encoders import Encoder
from methods.parts.multi_crop import crop_features
from methods.parts.precision import Head, LinearHead, full_precision
from methods.parts.ranks import number_of_ranks, total_over_ranks
from methods.parts.schedule import BY_FORM, Ramp, value_at, within
from methods.parts.teacher import follow, frozen_copy

# What a teacher's scores are divided by: a number, or its schedule.
Temperature = Annotated[
    Annotated[float, Field(gt=0), Tag("number")] | Annotated[Ramp, within(1e-3, 10.0), Tag("ramp")], BY_FORM
]


class UnitLength(nn.Module):
    """Brings vectors to length 1."""

    def forward(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Normalise the last axis."""
        return F.normalize(z, dim=-1)


class UnitRows(LinearHead):
    """A linear layer without bias whose rows count as vectors of length 1, however long they are (weight norm)."""

    def __init__(self, in_dim: int, num_rows: int) -> None:
        super().__init__(in_dim, num_rows, bias=False)

    @full_precision()
    def forward(self, input: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Return the scores of each row."""
        return F.linear(input.to(self.weight.dtype), F.normalize(self.weight, dim=1))


def distillation_head(in_dim: int, hidden_dim: int, dim: int, num_outputs: int) -> Head:
    """Return DINO's head: two hidden layers with GELU, a vector of length 1, and its scores for all outputs."""
    layers = [
        nn.Linear(in_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, dim),
    ]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return Head(*layers, UnitLength(), UnitRows(dim, num_outputs))


class Codes(nn.Module):
    """Turns a teacher's scores into codes; holds their centre and the temperature, which change over a training.

    centre        the moving mean of all scores of all ranks; no output can win for all samples
    temperature   that of the next step
    """

    centre: Tensor
    temperature: Tensor

    def __init__(self, num_outputs: int, temperature: Temperature, centre_decay: float) -> None:
        super().__init__()
        self.schedule, self.decay = temperature, centre_decay
        self.register_buffer("centre", torch.zeros(num_outputs))
        self.register_buffer("temperature", torch.tensor(value_at(temperature, 0.0)))
        self._mean: Tensor | None = None

    @full_precision()
    def forward(self, scores: Float[Tensor, "v b k"]) -> Float[Tensor, "v b k"]:
        """Return codes, without gradient; remember the scores' mean over all ranks until ``move``."""
        scores = scores.detach()
        self._mean = total_over_ranks(scores.mean((0, 1))) / number_of_ranks()
        return ((scores - self.centre) / self.temperature).softmax(-1)

    @torch.no_grad()
    def move(self, progress: Progress) -> None:
        """Move the centre towards the mean of the step's scores, and set the next step's temperature."""
        assert self._mean is not None
        self.centre.lerp_(self._mean.to(self.centre), 1 - self.decay)
        self.temperature.fill_(value_at(self.schedule, progress.share))


class DistillationTeacher(nn.Module):
    """Copies of an encoder and a head, which follow both."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = frozen_copy(encoder), frozen_copy(head)

    def forward(self, images: Sequence[Float[Tensor, "b c ..."]]) -> Float[Tensor, "v b k"]:
        """Return the scores of all images, without gradient."""
        with torch.no_grad():
            return self.head(crop_features(self.encoder, images)).unflatten(0, (len(images), -1))

    def move(self, encoder: Encoder, head: Head, decay: float) -> None:
        """Keep ``decay`` of itself, and take the rest from the student."""
        follow(self.encoder, encoder, decay)
        follow(self.head, head, decay)


@full_precision()
def entropy_of_mean(codes: Float[Tensor, "v b k"]) -> Float[Tensor, ""]:
    """Return the least cross-entropy with these codes of one prediction for all: the entropy of their mean."""
    mean = total_over_ranks(codes.mean((0, 1))) / number_of_ranks()
    return -torch.xlogy(mean, mean).sum()
