"""Canvas: images of any size, brought to one size without a change of shape: resized, centred and padded with 0."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from data.boxes import Boxes, resizing
from methods.parts.fitting import resize


@dataclass(frozen=True)
class Placement:
    """Where an image of ``extent`` lies on a canvas: resized to ``size``, from the pixel ``low`` on."""

    extent: tuple[int, int]
    size: tuple[int, int]
    low: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def of(cls, extent: tuple[int, int], longer_side: int, canvas: tuple[int, int]) -> "Placement":
        """Place an image whose longer side is to have this length, or as much of it as the canvas allows."""
        factor = min(longer_side / max(extent), *(room / length for room, length in zip(canvas, extent, strict=True)))
        height, width = (max(1, round(length * factor)) for length in extent)
        return cls(extent, (height, width), ((canvas[0] - height) // 2, (canvas[1] - width) // 2), canvas)

    @property
    def window(self) -> Boxes:
        """The part of the canvas that the image covers, as a box of class 0."""
        low = np.array(self.low)
        return Boxes(np.stack([low, low + self.size])[None], np.zeros(1, np.int64))

    def paint(self, image: Float[Tensor, "*c h w"]) -> Float[Tensor, "*c y x"]:
        """Return the canvas with the image on it."""
        painted = image.new_zeros(*image.shape[:-2], *self.canvas)
        (top, left), (height, width) = self.low, self.size
        resized = resize(image.flatten(0, -3), self.size)
        painted[..., top : top + height, left : left + width] = resized.unflatten(0, image.shape[:-2])
        return painted

    @property
    def to_canvas(self) -> Float64[np.ndarray, "3 3"]:
        """The matrix that takes pixel indices (.., 1) of the image to those of the canvas."""
        to_canvas = resizing(self.extent, self.size)
        to_canvas[:-1, -1] += self.low
        return to_canvas

    def back(self, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
        """Return boxes on the canvas as boxes of the image, cut at its border."""
        low, size = boxes.new_tensor(self.low * 2), boxes.new_tensor(self.size * 2)
        extent = boxes.new_tensor(self.extent * 2)
        return torch.minimum(((boxes - low) * extent / size).clamp(min=0), extent)
