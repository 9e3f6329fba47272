"""FROC: how many true boxes are found when so many false positives per image are accepted.

Paper:     Yan et al., "3D Context Enhanced Region-based Convolutional Neural Network for End-to-End Lesion Detection"
           (3DCE), MICCAI 2018, section 3; SVD-Net (seed 003), Table VI.
Reference: rsummers11/CADLab, 3DCE's ``FROC``, as it is kept in urmagicsmine/MP3D @ 4ab3ea1, ``datasets/lesion.py``:
           in the order of the scores of all images, a detection finds every box that it overlaps by an IoU of 0.5 or
           more; one that reaches no box at all is a false positive. A detection of boxes that were found before is
           neither.
Variants:  none. The reference interpolates; since false positives find nothing, that gives the share found by the
           detection that makes the mean number of false positives reach a bound. Here it is defined so, also where
           the bound is reached at once, for which the reference extrapolates; where it is never reached, all
           detections are taken, as in the reference.
           With several classes, a detection meets the boxes of its own class only; all classes are counted together.
Shapes:    boxes as (low corner, high corner).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from methods.detection.average_precision import Findings, overlaps

FALSE_POSITIVES = (0.5, 1.0, 2.0, 4.0)
IOU = 0.5


@dataclass(frozen=True)
class Finds:
    """Of an image's detections by score: how many boxes each finds first, and which reach none."""

    scores: Float[np.ndarray, " D"]
    gains: Int[np.ndarray, " D"]
    misses: Bool[np.ndarray, " D"]
    num_true: int


def sensitivities(
    found_lists: Sequence[Sequence[Findings]], num_images: int, bounds: Sequence[float] = FALSE_POSITIVES
) -> list[float] | None:
    """Return the share of true boxes that are found at each bound of false positives per image.

    ``found_lists`` has a list of findings, class by class, for each image; crowds are left out. None where there is
    no true box. Detections with equal scores come in the order given.
    """
    return sensitivities_of([finds_of(own) for image in found_lists for own in image], num_images, bounds)


def sensitivities_of(
    finds: Sequence[Finds], num_images: int, bounds: Sequence[float] = FALSE_POSITIVES
) -> list[float] | None:
    """Return the share of true boxes that are found at each bound, from what was found in images, in their order."""
    num_true = sum(own.num_true for own in finds)
    if num_true == 0:
        return None
    order = np.argsort(-np.concatenate([own.scores for own in finds]), kind="stable")
    columns = [own.gains for own in finds], [own.misses for own in finds]
    found, wrong = (np.concatenate(each)[order].cumsum() for each in columns)
    found = np.append(found, found[-1:].sum())  # where a bound is never reached, all that was found
    at = np.searchsorted(wrong / num_images, np.array(bounds), side="left")
    return (found[at] / num_true).tolist()


def finds_of(own: Findings) -> Finds:
    """Return what an image's detections of one class find, in the order of their scores."""
    order = np.argsort(-own.scores, kind="stable")
    return Finds(own.scores[order], *hits(own, order), int((~own.crowd).sum()))


def hits(own: Findings, order: Int[np.ndarray, " D"]) -> tuple[Int[np.ndarray, " D"], Bool[np.ndarray, " D"]]:
    """Return, for detections of an image in an order, how many boxes each finds first, and which reach none."""
    true = own.true[~own.crowd]
    reached: Bool[np.ndarray, "D G"] = overlaps(own.boxes[order], true, np.zeros(len(true), bool)) >= IOU
    first = reached & (reached.cumsum(axis=0) == 1)
    return first.sum(axis=1), reached.sum(axis=1) == 0
