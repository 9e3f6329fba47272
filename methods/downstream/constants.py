"""Constants: the losses of downstream tasks for the best prediction that does not look at the images.

It is how often each class occurs: in the samples that are trained on, or, of voxels, in the batch of all ranks.
Shapes: B samples, K classes (of voxels, 0 is the background), R regions.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from methods.downstream.class_losses import Kind, multi_label_loss, ordinal_loss, single_loss
from methods.parts.ranks import total_over_ranks

LEAST = 1e-6  # probability of what never occurs
SMOOTH = 1e-5  # MONAI's, of Dice losses


def class_loss_of_constant(
    has: Bool[Tensor, "b k"], shares: Float[Tensor, " k"], weights: Float[Tensor, " k"], kind: Kind
) -> Float[Tensor, ""]:
    """Return the loss of a batch where every sample is given the classes' shares among the training samples."""
    weighted = shares * weights
    if kind == "multi_label":
        return multi_label_loss(_odds(weighted / (weighted + 1 - shares)).expand(has.shape), has, weights)
    weighted, classes = weighted / weighted.sum(), has.int().argmax(1)
    if kind == "ordinal":
        reached = weighted.flip(0).cumsum(0).flip(0)
        return ordinal_loss(_odds(reached).expand(has.shape), classes, weights)
    return single_loss(weighted.clamp(min=LEAST).log().expand(has.shape), classes, weights)


def classes_loss_of_constant(
    classes: Int[Tensor, "b *s"], num_classes: int, background: bool, weights: tuple[float, float]
) -> Float[Tensor, ""]:
    """Return weighted Dice loss and cross-entropy where every voxel is given the classes' shares."""
    flat = classes.flatten(1).long()
    counts = torch.zeros(len(flat), num_classes, device=flat.device).scatter_add_(
        1, flat, torch.ones_like(flat, dtype=torch.float32)
    )
    shares = _shares(counts, flat.shape[1])
    cross_entropy = -(counts / flat.shape[1] * shares.clamp(min=LEAST).log()).sum(1).mean()
    dice = _dice_loss(counts, shares, flat.shape[1])[:, 0 if background else 1 :].mean()
    return weights[0] * dice + weights[1] * cross_entropy


def regions_loss_of_constant(regions: Bool[Tensor, "b r *s"], weights: tuple[float, float]) -> Float[Tensor, ""]:
    """Return weighted Dice loss and binary cross-entropy where every voxel is given the regions' shares."""
    flat = regions.flatten(2)
    counts, num_voxels = flat.sum(2).float(), flat.shape[2]
    shares = _shares(counts, num_voxels)
    inside, bounded = counts / num_voxels, shares.clamp(LEAST, 1 - LEAST)
    cross_entropy = -(inside * bounded.log() + (1 - inside) * (1 - bounded).log()).mean()
    return weights[0] * _dice_loss(counts, shares, num_voxels).mean() + weights[1] * cross_entropy


def _shares(counts: Float[Tensor, "b k"], num_voxels: int) -> Float[Tensor, " k"]:
    """Return the share of the voxels of all samples on all ranks that each column counts."""
    total = total_over_ranks(torch.cat([counts.sum(0), counts.new_tensor([len(counts) * num_voxels])]))
    return total[:-1] / total[-1]


def _dice_loss(counts: Float[Tensor, "b k"], shares: Float[Tensor, " k"], num_voxels: int) -> Float[Tensor, "b k"]:
    """Return the soft Dice loss of each sample and class."""
    return 1 - (2 * shares * counts + SMOOTH) / (counts + shares * num_voxels + SMOOTH)


def _odds(probabilities: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return logits."""
    return torch.logit(probabilities.clamp(LEAST, 1 - LEAST))
