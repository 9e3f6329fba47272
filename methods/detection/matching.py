"""Matching: which true box each anchor or proposal is to find, by overlap.

Paper:     Ren et al., "Faster R-CNN", NeurIPS 2015, section 3.1.2.
Reference: open-mmlab/mmdetection 2.x, ``max_iou_assigner.py`` with the settings of ``faster_rcnn_r50_fpn.py``.
           MONAI's ``ATSSMatcher`` follows another rule.
Variants:  none.
Shapes:    N anchors or proposals, M true boxes of m numbers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from methods.detection.boxes import iou_matrix

BACKGROUND, UNDECIDED = -1, -2


@dataclass(frozen=True)
class MatchingRule:
    """The bounds of IoU: from ``positive`` on, a candidate is its best box's; below ``negative``, it is background.

    Where ``least`` is given, every box also gets the candidates that overlap most with it, if they reach ``least``,
    even those that overlap more with another box. In between, and without such a claim, a candidate is undecided.
    """

    positive: float
    negative: float
    least: float | None = None


PROPOSAL_RULE = MatchingRule(0.7, 0.3, least=0.3)
REGION_RULE = MatchingRule(0.5, 0.5)


def matched(
    candidates: Float[Tensor, "N m"], boxes: Float[Tensor, "M m"], present: Bool[Tensor, " M"], rule: MatchingRule
) -> Int[Tensor, " N"]:
    """Return the number of each candidate's box, or BACKGROUND, or UNDECIDED; boxes that are not present are padding.

    A candidate that overlaps equally with several boxes gets the first of them by the first bound, and the last of
    the boxes that claim it.
    """
    if len(boxes) == 0:
        return torch.full_like(candidates[:, 0], BACKGROUND, dtype=torch.int64)
    overlap = iou_matrix(candidates, boxes).masked_fill(~present, -1.0)
    most, best = overlap.max(dim=1)
    number = torch.where(most >= rule.positive, best, UNDECIDED)
    number = torch.where(most < rule.negative, BACKGROUND, number)
    if rule.least is None or len(candidates) == 0:
        return number
    claimed = (overlap == overlap.amax(dim=0)) & (overlap >= rule.least)
    last = torch.where(claimed, torch.arange(len(boxes), device=boxes.device), -1).amax(dim=1)
    return torch.where(last >= 0, last, number)
