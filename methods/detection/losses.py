"""Losses of a two-stage detector: of the proposals, and of the classes and boxes of regions.

Paper:     Ren et al., "Faster R-CNN", NeurIPS 2015, equation 1.
Reference: open-mmlab/mmdetection 2.x, ``faster_rcnn_r50_fpn.py``: binary cross-entropy and cross-entropy, and the L1
           loss of the deltas of positive samples, both divided by the number of all samples, all of weight 1.
Variants:  beta   mmdetection: 0, the L1 loss; MP3D: the smooth L1 loss, with 1/9 for proposals and 1 for regions
Shapes:    k samples of all images together, K classes; ``weights`` are each sample's share of the loss.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from methods.parts.precision import full_precision

LossPair = tuple[Float[Tensor, ""], Float[Tensor, ""]]


@full_precision()
def proposal_losses(
    logits: Float[Tensor, " k"],
    deltas: Float[Tensor, "k 4"],
    positive: Bool[Tensor, " k"],
    true_deltas: Float[Tensor, "k 4"],
    weights: Float[Tensor, " k"],
    beta: float,
) -> LossPair:
    """Return the loss of whether there is something, and of the deltas of anchors that are to find a box."""
    each = F.binary_cross_entropy_with_logits(logits, positive.to(logits), reduction="none")
    return (each * weights).sum(), _delta_loss(deltas, true_deltas, positive, weights, beta)


@full_precision()
def region_losses(
    logits: Float[Tensor, "k K1"],
    deltas: Float[Tensor, "k K 4"],
    classes: Int64[Tensor, " k"],
    true_deltas: Float[Tensor, "k 4"],
    weights: Float[Tensor, " k"],
    beta: float,
) -> LossPair:
    """Return the loss of the classes, the background last, and of the deltas of each positive region's class."""
    each = F.cross_entropy(logits, classes, reduction="none")
    positive = classes < deltas.shape[1]
    own = deltas[torch.arange(len(deltas), device=deltas.device), classes.clamp(max=deltas.shape[1] - 1)]
    return (each * weights).sum(), _delta_loss(own, true_deltas, positive, weights, beta)


def _delta_loss(
    deltas: Float[Tensor, "k 4"],
    true_deltas: Float[Tensor, "k 4"],
    positive: Bool[Tensor, " k"],
    weights: Float[Tensor, " k"],
    beta: float,
) -> Float[Tensor, ""]:
    sought = torch.where(positive[:, None], true_deltas, deltas.detach())  # no number of the background gets in
    each = F.smooth_l1_loss(deltas, sought.to(deltas), reduction="none", beta=beta).sum(dim=1)
    return (each * weights * positive).sum()
