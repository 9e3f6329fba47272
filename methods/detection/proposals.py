"""Proposals: the anchors of an image in which something is likely, moved to where it seems to be.

Paper:     Ren et al., "Faster R-CNN", NeurIPS 2015, section 3.
Reference: open-mmlab/mmdetection 2.x, ``rpn_head.py``: of each level the likeliest anchors, of which those that
           overlap are suppressed level by level, and of all that are left the likeliest.
Variants:  none.
Shapes:    A anchors of a level, P proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from methods.detection.boxes import Deviations, clip, decode, sides
from methods.detection.suppression import kept_boxes

ANCHOR_DEVIATIONS: Deviations = (1.0, 1.0)


@dataclass(frozen=True)
class LevelAnswer:
    """What the proposal head says of a level of one image: a logit and deltas for each of its anchors."""

    anchors: Float[Tensor, "A 4"]
    logits: Float[Tensor, " A"]
    deltas: Float[Tensor, "A 4"]


@dataclass(frozen=True)
class Proposals:
    """Boxes, the likeliest first, always as many, so that shapes do not depend on values; the first ones count."""

    boxes: Float[Tensor, "P 4"]
    counts: Bool[Tensor, " P"]


@torch.no_grad()
def proposals_of(
    levels: Sequence[LevelAnswer], window: Float[Tensor, "4"], most_of_level: int, most: int, threshold: float
) -> Proposals:
    """Return the proposals of an image, at most ``most``, cut at its window; those without an inside do not count.

    ``most_of_level`` anchors of each level are looked at, and ``threshold`` is the IoU above which a proposal is
    suppressed by a likelier one of its level.
    """
    found, likely = [], []
    for level in levels:
        order = level.logits.argsort(descending=True, stable=True)[:most_of_level]
        boxes = clip(decode(level.deltas[order], level.anchors[order], ANCHOR_DEVIATIONS), window)
        counts = (sides(boxes) > 0).all(dim=1) & kept_boxes(boxes, level.logits[order], threshold)
        found.append(boxes)
        likely.append(level.logits[order].masked_fill(~counts, -torch.inf))
    boxes, logits = torch.cat(found), torch.cat(likely)
    order = logits.argsort(descending=True, stable=True)[:most]
    return Proposals(boxes[order], logits[order] > -torch.inf)
