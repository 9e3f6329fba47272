"""MeanBox: a trivial detector, to be beaten: it says of every image what the training images have on average."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from data.boxes import Boxes
from methods.detection.detections import Detections


class MeanBox(nn.Module):
    """Of each class that occurs, the mean of its boxes, with the share of images that have one as its score.

    boxes     (k, 4) in shares of the image's size, the most frequent class first
    shares    (k,) of the training images
    classes   (k,)
    """

    boxes: Float[Tensor, "k 4"]
    shares: Float[Tensor, " k"]
    classes: Int64[Tensor, " k"]

    def __init__(self, findings: Sequence[Boxes], extents: Sequence[tuple[int, int]]) -> None:
        """Take the means over training images with these boxes and sizes; at least one has a box."""
        super().__init__()
        kinds = np.concatenate([own.classes for own in findings])
        if not len(kinds):
            raise ValueError(
                f"mean box: 0 boxes in {len(findings)} training images, expected at least 1; "
                "`raydiology shards show` counts them"
            )
        relative = [own.corners / np.array(extent) for own, extent in zip(findings, extents, strict=True)]
        boxes = np.concatenate(relative).reshape(-1, 4)
        shares = {kind: np.mean([kind in own.classes for own in findings]) for kind in np.unique(kinds).tolist()}
        order = sorted(shares, key=lambda kind: (-shares[kind], kind))
        means = np.array([boxes[kinds == kind].mean(axis=0) for kind in order])
        self.register_buffer("boxes", torch.from_numpy(means).float())
        self.register_buffer("shares", torch.tensor([shares[kind] for kind in order]).float())
        self.register_buffer("classes", torch.tensor(order))

    def detect(self, images: Float[Tensor, "b c *s"], windows: Float[Tensor, "b 4"]) -> list[Detections]:
        """Return the same for all images, in the part of each that is not padding."""
        return self.within(windows)

    def within(self, windows: Float[Tensor, "b 4"]) -> list[Detections]:
        """Return the same for all windows, at the same place of each."""
        low, high = windows.chunk(2, dim=1)
        placed = low.repeat(1, 2)[:, None] + self.boxes * (high - low).repeat(1, 2)[:, None]
        return [Detections(boxes, self.shares, self.classes) for boxes in placed]
