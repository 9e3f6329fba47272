"""Losses of classification: one class of several, grades in an order, or any number of classes; and class weights.

Each loss is divided by the number of samples, not by the sum of their weights as in torch, so that the mean over
ranks is the mean over the batch.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from methods.parts.precision import full_precision

Kind = Literal["single", "ordinal", "multi_label"]
REACHED = 0.5


@full_precision()
def single_loss(
    logits: Float[Tensor, "b k"], classes: Int[Tensor, " b"], weights: Float[Tensor, " k"]
) -> Float[Tensor, ""]:
    """Return the mean over samples of cross-entropy times the weight of the sample's class."""
    return (F.cross_entropy(logits, classes, reduction="none") * weights[classes]).mean()


@full_precision()
def ordinal_loss(
    logits: Float[Tensor, "b k"], classes: Int[Tensor, " b"], weights: Float[Tensor, " k"]
) -> Float[Tensor, ""]:
    """Return binary cross-entropy of "at least grade k": mean over grades, then over samples, weighted by class."""
    reached = torch.arange(logits.shape[1], device=logits.device) <= classes[:, None]
    each = F.binary_cross_entropy_with_logits(logits, reached.to(logits), reduction="none").mean(1)
    return (each * weights[classes]).mean()


@full_precision()
def multi_label_loss(
    logits: Float[Tensor, "b k"], has: Bool[Tensor, "b k"], weights: Float[Tensor, " k"]
) -> Float[Tensor, ""]:
    """Return the mean binary cross-entropy; a class's weight multiplies the terms of the samples that have it."""
    return F.binary_cross_entropy_with_logits(logits, has.to(logits), pos_weight=weights)


def balanced_weights(counts: Int[np.ndarray, " k"], num_samples: int, kind: Kind) -> Float[np.ndarray, " k"]:
    """Return weights that give every class equal influence; 1 for a class that no sample has.

    If classes exclude each other: samples / (classes that occur * samples of the class). Otherwise: samples without
    the class / samples with the class.
    """
    occurs = counts > 0
    share = (
        num_samples - counts if kind == "multi_label" else np.full(len(counts), num_samples / max(1, occurs.sum()))
    )
    return np.where(occurs, share / np.maximum(counts, 1), 1.0)


def read_grades(levels: Float[Tensor, "b k"]) -> tuple[Int[Tensor, " b"], Float[Tensor, "b k"]]:
    """Return the predicted grade, and each grade's probability, from the probabilities of reaching each grade.

    The predicted grade is a count, as in the released code. For the probabilities, reaching a grade is never likelier
    than reaching a lower grade, and the lowest grade is always reached.
    """
    grade = ((levels > REACHED).sum(1) - 1).clamp(min=0)
    reached = torch.cat([torch.ones_like(levels[:, :1]), levels[:, 1:]], dim=1).cummin(1).values
    return grade, reached - F.pad(reached[:, 1:], (0, 1))
