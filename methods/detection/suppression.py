"""Suppression: of boxes that overlap, keep the one with the highest score (non-maximum suppression).

Paper:     none of its own; as torchvision's ``nms``: in the order of their scores, a box is kept unless its IoU with
           a box that was kept before exceeds the threshold.
Reference: MONAI's ``non_max_suppression`` does the same one box at a time, each with a look at the device: ten
           thousand boxes of five classes take it a minute on two cores, and this file 0.2 s. Its ``batched_nms``
           moves classes apart by an offset, which rounds the boxes.
Variants:  none.
Shapes:    N boxes of m numbers.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from methods.detection.boxes import iou_matrix

BLOCK = 512


def kept_boxes(
    boxes: Float[Tensor, "N m"],
    scores: Float[Tensor, " N"],
    threshold: float,
    classes: Int[Tensor, " N"] | None = None,
) -> Bool[Tensor, " N"]:
    """Tell which boxes are kept; of boxes with equal scores, the first comes first.

    A box is suppressed by boxes of its own class only; without ``classes``, all have one. A box without an inside
    overlaps with none. Tensors without values come back as if all were kept.
    """
    if boxes.is_meta:
        return torch.ones_like(scores, dtype=torch.bool)
    kinds = torch.zeros_like(scores, dtype=torch.int64) if classes is None else classes
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for kind in kinds.unique():
        own = (kinds == kind).nonzero()[:, 0]
        own = own[scores[own].argsort(descending=True, stable=True)]
        mask[own[_kept_in_order(boxes[own], threshold)]] = True
    return mask


def _kept_in_order(boxes: Float[Tensor, "N m"], threshold: float) -> Int[Tensor, " k"]:
    """Return the places of the boxes that are kept; each is suppressed by boxes before it only.

    Block by block, boxes are compared with those that were kept before, and what is left with each other: far fewer
    pairs than there are, and never many at once.
    """
    kept: list[Tensor] = []
    found = boxes[:0]
    for start in range(0, len(boxes), BLOCK):
        block = boxes[start : start + BLOCK]
        free = (~(iou_matrix(found, block) > threshold).any(0)).nonzero()[:, 0]
        chosen = free[_settled((iou_matrix(block[free], block[free]) > threshold).triu(1))]
        kept.append(chosen + start)
        found = torch.cat([found, block[chosen]])
    return torch.cat(kept)


def _settled(suppresses: Bool[Tensor, "N N"]) -> Bool[Tensor, " N"]:
    """Tell which boxes are kept where box i, if it is kept, suppresses box j > i.

    All boxes are judged at once, by those that were kept a round before. The first box is right from the start, and
    each round settles at least the next one: when nothing changes any more, all are right. Few rounds are needed,
    one for each link of the longest chain of boxes that suppress one another.
    """
    weights = suppresses.float()
    keep = torch.ones(len(suppresses), dtype=torch.bool, device=suppresses.device)
    while True:
        after = keep.float() @ weights == 0
        if torch.equal(after, keep):
            return keep
        keep = after
