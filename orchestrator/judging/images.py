"""Images: what the pictures of judged samples are drawn from; matplotlib is imported only where one is drawn."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# Of an image's detections are drawn: as many as it has true boxes, and so many more.
MORE_DETECTIONS = 3


@dataclass(frozen=True)
class MaskedSlice:
    """One slice with its true and predicted class indices (0 is background).

    ``spacing_mm`` is the spacing of (rows, columns); ``upright`` says that row 0 is the top, as in a photograph.
    """

    title: str
    image: Float[np.ndarray, "h w"]
    truth: Int[np.ndarray, "h w"]
    prediction: Int[np.ndarray, "h w"]
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    upright: bool = False


@dataclass(frozen=True)
class JudgedImage:
    """One slice or picture with its true and its predicted classes, by index.

    ``probabilities`` has one value per class; ``spacing_mm`` and ``upright`` are as in ``MaskedSlice``.
    """

    title: str
    image: Float[np.ndarray, "c h w"]
    truth: tuple[int, ...]
    predicted: tuple[int, ...]
    probabilities: Float[np.ndarray, " k"]
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    upright: bool = False


@dataclass(frozen=True)
class BoxedImage:
    """One slice or picture with its true boxes, solid, and its detections, dashed, the likeliest first.

    Boxes are low and high corner in pixels (row, column), and classes are places among the names; ``spacing_mm`` and
    ``upright`` are as in ``MaskedSlice``.
    """

    title: str
    image: Float[np.ndarray, "c h w"]
    true: Float[np.ndarray, "n 4"]
    true_classes: Int[np.ndarray, " n"]
    detected: Float[np.ndarray, "m 4"]
    detected_classes: Int[np.ndarray, " m"]
    scores: Float[np.ndarray, " m"]
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    upright: bool = False

    @property
    def num_drawn(self) -> int:
        """How many of the detections are drawn."""
        return min(len(self.scores), len(self.true) + MORE_DETECTIONS)
