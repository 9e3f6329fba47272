"""Detections: what a detector finds in an image, from the answers to its regions.

Paper:     Girshick, "Fast R-CNN", ICCV 2015, section 4.
Reference: open-mmlab/mmdetection 2.x, ``bbox_nms.py``: each region is a candidate for every class, suppression is
           class by class, and the likeliest of all classes are kept.
Variants:  none.
Shapes:    R regions, K classes, n detections.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from methods.detection.assignments import REGION_DEVIATIONS
from methods.detection.boxes import clip, decode, sides
from methods.detection.suppression import kept_boxes


@dataclass(frozen=True)
class Detections:
    """The boxes that are found in an image, the likeliest first; of equally likely ones, the first region's."""

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    classes: Int64[Tensor, " n"]


def detections_of(
    regions: Float[Tensor, "R 4"],
    logits: Float[Tensor, "R K1"],
    deltas: Float[Tensor, "R K 4"],
    window: Float[Tensor, "4"],
    score_threshold: float,
    iou_threshold: float,
    most: int,
) -> Detections:
    """Return at most ``most`` detections with a score above a threshold, cut at the window.

    Of two that overlap more than ``iou_threshold`` and have one class, the likelier is kept.
    """
    probabilities = logits.softmax(dim=1)[:, :-1]
    row, kind = (probabilities > score_threshold).nonzero().T
    scores = probabilities[row, kind]
    boxes = clip(decode(deltas[row, kind], regions[row], REGION_DEVIATIONS), window)
    inside = (sides(boxes) > 0).all(dim=1)
    boxes, scores, kind = boxes[inside], scores[inside], kind[inside]
    kept = kept_boxes(boxes, scores, iou_threshold, kind).nonzero()[:, 0]
    order = kept[scores[kept].argsort(descending=True, stable=True)[:most]]
    return Detections(boxes[order], scores[order], kind[order])
