"""Assignments: what the sampled anchors and regions of an image are to answer.

Paper:     Ren et al., "Faster R-CNN", NeurIPS 2015, sections 3.1.2 and 3.1.3; Girshick, "Fast R-CNN", ICCV 2015,
           section 2.3.
Reference: open-mmlab/mmdetection 2.x, ``faster_rcnn_r50_fpn.py``: 256 anchors, at most half of them positive; 512
           regions, at most a quarter positive, the true boxes among them.
Variants:  none. Each image's share of a loss is divided by the number of its own samples; mmdetection divides the
           batch's sum by the batch's number, which is the same where every image fills its sample. Only so do two
           ranks with half of the batch each equal one rank.
Shapes:    N candidates, of which k are sampled; M true boxes; K classes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from methods.detection.boxes import Deviations, encode
from methods.detection.matching import BACKGROUND, PROPOSAL_RULE, REGION_RULE, matched
from methods.detection.proposals import ANCHOR_DEVIATIONS, Proposals
from methods.detection.sampling import Sampling, priorities, sampled

REGION_DEVIATIONS: Deviations = (0.1, 0.2)
ANCHOR_SHARE, REGION_SHARE = 0.5, 0.25
# The priorities of an image's regions are other numbers of its stream than those of its anchors.
FIRST_REGION = 2**40


@dataclass(frozen=True)
class Truth:
    """The true boxes of an image; a class of -1 marks padding, of which there is some where there is no box."""

    boxes: Float[Tensor, "M 4"]
    classes: Int64[Tensor, " M"]

    @property
    def present(self) -> Bool[Tensor, " M"]:
        return self.classes >= 0


@dataclass(frozen=True)
class Assignment:
    """What k sampled candidates are to answer.

    index      their places among the candidates
    boxes      the candidates themselves
    positive   whether they are to find a box
    classes    the class of that box, or K, the background
    deltas     to that box; they mean nothing for the background
    weights    each one's share of the image's loss: 1 / number of samples, or 0 where there were too few candidates
    """

    index: Int64[Tensor, " k"]
    boxes: Float[Tensor, "k 4"]
    positive: Bool[Tensor, " k"]
    classes: Int64[Tensor, " k"]
    deltas: Float[Tensor, "k 4"]
    weights: Float[Tensor, " k"]


@torch.no_grad()
def assign_anchors(
    anchors: Float[Tensor, "N 4"], usable: Bool[Tensor, " N"], truth: Truth, seed: Int64[Tensor, ""], count: int
) -> Assignment:
    """Sample ``count`` usable anchors; all true boxes are of one class, 0, and the background is 1."""
    number = matched(anchors, truth.boxes, truth.present, PROPOSAL_RULE)
    priority = priorities(seed, len(anchors))
    sampling = sampled((number >= 0) & usable, (number == BACKGROUND) & usable, priority, count, ANCHOR_SHARE)
    something = torch.zeros_like(truth.classes)
    return _assignment(anchors, number, sampling, truth.boxes, something, 1, ANCHOR_DEVIATIONS)


@torch.no_grad()
def assign_regions(
    proposals: Proposals, truth: Truth, num_classes: int, seed: Int64[Tensor, ""], count: int
) -> Assignment:
    """Sample ``count`` of an image's proposals and true boxes."""
    # The true boxes come last: how much padding they have changes no other candidate's place, nor its priority.
    boxes = torch.cat([proposals.boxes, truth.boxes])
    usable = torch.cat([proposals.counts, truth.present])
    number = matched(boxes, truth.boxes, truth.present, REGION_RULE)
    priority = priorities(seed, len(boxes), FIRST_REGION)
    sampling = sampled((number >= 0) & usable, (number == BACKGROUND) & usable, priority, count, REGION_SHARE)
    return _assignment(boxes, number, sampling, truth.boxes, truth.classes, num_classes, REGION_DEVIATIONS)


def _assignment(
    candidates: Float[Tensor, "N 4"],
    number: Int64[Tensor, " N"],
    sampling: Sampling,
    boxes: Float[Tensor, "M 4"],
    classes: Int64[Tensor, " M"],
    background: int,
    deviations: Deviations,
) -> Assignment:
    chosen, sought = candidates[sampling.index], number[sampling.index].clamp(min=0)
    return Assignment(
        index=sampling.index,
        boxes=chosen,
        positive=sampling.positive,
        classes=torch.where(sampling.positive, classes[sought], background),
        deltas=encode(boxes[sought], chosen, deviations),
        weights=sampling.counts.to(candidates) / sampling.counts.sum().clamp(min=1),
    )
