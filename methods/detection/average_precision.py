"""Average precision of detections of one class, as COCO defines it.

Paper:     Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the rules are those of its evaluation
           code.
Reference: ppwwyyxx/cocoapi (pycocotools 2.0), ``cocoeval.py``: area ``all``, at most 100 detections of an image.
           In the order of their scores, a detection takes the free true box that overlaps most with it, if its IoU
           reaches the threshold; of equal ones, the last. Crowds, regions in which boxes were not told apart, are no
           true boxes: a detection that takes no box but lies in a crowd (intersection over its own area) does not
           count, and a crowd may be taken again and again.
           Precision is made to fall with recall, and averaged over the recalls 0, 0.01, ... 1.
Variants:  none.
Shapes:    G true boxes and D detections of an image, T thresholds; boxes as (low corner, high corner).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100


@dataclass(frozen=True)
class Findings:
    """The true boxes of one class in an image, and what was detected; ``crowd`` marks true boxes that are crowds."""

    true: Float[np.ndarray, "G 4"]
    crowd: Bool[np.ndarray, " G"]
    boxes: Float[np.ndarray, "D 4"]
    scores: Float[np.ndarray, " D"]


@dataclass(frozen=True)
class MatchedDetections:
    """Of an image's detections by score: which took a box at each threshold, and which do not count."""

    scores: Float[np.ndarray, " D"]
    took: Bool[np.ndarray, "T D"]
    ignored: Bool[np.ndarray, "T D"]
    num_true: int


def average_precisions(
    images: Sequence[Findings], thresholds: Float[np.ndarray, " T"] = THRESHOLDS
) -> Float[np.ndarray, " T"] | None:
    """Return the average precision at each IoU threshold; None where no image has a true box.

    Detections with equal scores come in the order of the images, and within an image in the given order.
    """
    return precisions_of([matched_detections(image, thresholds) for image in images])


def precisions_of(matched: Sequence[MatchedDetections]) -> Float[np.ndarray, " T"] | None:
    """Return the average precision at each threshold from the matched detections of images, in order."""
    num_true = sum(own.num_true for own in matched)
    if num_true == 0:
        return None
    order = np.argsort(-np.concatenate([own.scores for own in matched]), kind="stable")
    took = np.concatenate([own.took for own in matched], axis=1)[:, order]
    ignored = np.concatenate([own.ignored for own in matched], axis=1)[:, order]
    found = [_of_curve(*one, num_true) for one in zip(took & ~ignored, ~took & ~ignored, strict=True)]
    return np.array(found)


def overlaps(
    boxes: Float[np.ndarray, "D 4"], true: Float[np.ndarray, "G 4"], crowd: Bool[np.ndarray, " G"]
) -> Float[np.ndarray, "D G"]:
    """Compute the IoU of every pair; with a crowd, the intersection over the detection's own area."""
    reach = np.minimum(boxes[:, None, 2:], true[:, 2:]) - np.maximum(boxes[:, None, :2], true[:, :2])
    shared = reach.clip(0).prod(axis=2)
    own, other = (np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, true))
    whole = np.where(crowd, own[:, None], own[:, None] + other - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)


def matched_detections(image: Findings, thresholds: Float[np.ndarray, " T"] = THRESHOLDS) -> MatchedDetections:
    """Match an image's detections with its true boxes."""
    order = np.argsort(-image.scores, kind="stable")[:MOST_DETECTIONS]
    iou = overlaps(image.boxes[order], image.true, image.crowd)
    bounds = np.minimum(thresholds, 1 - 1e-10)
    took = np.zeros((len(thresholds), len(order)), dtype=bool)
    ignored, free = took.copy(), np.tile(~image.crowd, (len(thresholds), 1))
    rows = np.arange(len(thresholds))
    for place in np.flatnonzero((iou >= bounds.min()).any(axis=1)):
        close = iou[place] >= bounds[:, None]
        candidates = np.where(free & close, iou[place], -1.0)
        best = candidates.shape[1] - 1 - candidates[:, ::-1].argmax(axis=1)
        hit = candidates[rows, best] >= 0
        free[rows[hit], best[hit]] = False
        ignored[:, place] = ~hit & (close & image.crowd).any(axis=1)
        took[:, place] = hit | ignored[:, place]
    return MatchedDetections(image.scores[order], took, ignored, int((~image.crowd).sum()))


def _of_curve(right: Bool[np.ndarray, " D"], wrong: Bool[np.ndarray, " D"], num_true: int) -> float:
    """Return the average precision of detections in the order of their scores; some are neither right nor wrong."""
    rights, wrongs = np.cumsum(right, dtype=float), np.cumsum(wrong, dtype=float)
    recall, precision = rights / num_true, rights / (rights + wrongs + np.spacing(1))
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(falling, 0.0)[reached].mean())
