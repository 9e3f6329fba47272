"""MeanBox: a trivial detector, to be beaten: it says of every image what the training images have on average."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from data.boxes import Boxes


@dataclass(frozen=True)
class MeanBox:
    """Of each class that occurs, the mean of its boxes, in shares of the image's size, and how often it occurs.

    classes   (k,) ascending
    boxes     low and high corner
    shares    of the training images that have a box of the class
    """

    classes: Int[np.ndarray, " k"]
    boxes: Float[np.ndarray, "k 4"]
    shares: Float[np.ndarray, " k"]

    @classmethod
    def of(cls, findings: Sequence[Boxes], extents: Sequence[tuple[int, int]]) -> "MeanBox":
        """Take the means over training images with these boxes and sizes."""
        kinds = np.concatenate([own.classes for own in findings])
        relative = np.concatenate(
            [own.corners / np.array(extent) for own, extent in zip(findings, extents, strict=True)]
        ).reshape(-1, 4)
        classes = np.unique(kinds)
        return cls(
            classes,
            np.array([relative[kinds == kind].mean(axis=0) for kind in classes]).reshape(-1, 4),
            np.array([np.mean([(own.classes == kind).any() for own in findings]) for kind in classes]),
        )

    def on(self, extent: tuple[int, int]) -> Float[np.ndarray, "k 4"]:
        """Return the boxes on an image of this size; their scores are ``shares``."""
        return self.boxes * np.array(extent * 2)
