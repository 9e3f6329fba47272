"""Boxes on the image that was read: rounded to its pixels, or refused where they cannot belong to it."""

from collections.abc import Sequence

import numpy as np

from data.boxes import Boxes
from data.quarantine import BadStudy
from data.sources.boxes import FoundBox


def boxes_on(size: tuple[int, ...], found: Sequence[FoundBox], stated: tuple[int, ...] | None = None) -> Boxes:
    """Return the boxes of an image's findings; faces go to the nearest border between pixels (``Boxes.between``).

    What exceeds the image is cut off. Raises BadStudy where the source ``stated`` another size of the image than it
    has, and for a box that is empty or lies outside.
    """
    if stated is not None and stated != size:
        raise BadStudy(
            f"an image of {' x '.join(map(str, size))} pixels, whose boxes are for {' x '.join(map(str, stated))}",
            "the image that the boxes were drawn on",
            "give that image, or scale the boxes",
        )
    faces = np.array([(box.low, box.high) for box in found], np.float64).reshape(-1, 2, len(size))
    for number, (low, high) in enumerate(faces, 1):
        if not np.isfinite((low, high)).all() or (low >= high).any():
            raise _fault(number, len(found), low, high, "a high corner above the low one along each axis")
        if (high <= 0).any() or (low >= size).any():
            raise _fault(number, len(found), low, high, f"a box in the image of {' x '.join(map(str, size))} pixels")
    return Boxes.between(faces, np.array([box.number for box in found], np.int64), size)


def _fault(number: int, total: int, low: np.ndarray, high: np.ndarray, expected: str) -> BadStudy:
    corners = " to ".join(f"({', '.join(f'{value:g}' for value in corner)})" for corner in (low, high))
    return BadStudy(f"box {number} of {total} from {corners}", expected, "correct the box, or delete it")
