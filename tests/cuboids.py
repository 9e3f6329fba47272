"""Phantoms for boxes: one bright cuboid per channel and its box, whose class is the channel's number and ten."""

import numpy as np

from data.boxes import Boxes
from data.scan import Scan

FIRST_CLASS = 10


def cuboids(rng: np.random.Generator, size: tuple[int, ...], count: int, least: int = 1) -> tuple[np.ndarray, Boxes]:
    """Return (count, *size) float32 of 0 and 1, and the boxes of the ones; a cuboid's sides have ``least`` voxels."""
    low = np.array([[rng.integers(0, length - least + 1) for length in size] for _ in range(count)])
    sides = np.array(
        [[rng.integers(least, length - a + 1) for a, length in zip(row, size, strict=True)] for row in low]
    )
    voxels = np.zeros((count, *size), np.float32)
    for channel, start, side in zip(voxels, low, sides, strict=True):
        channel[tuple(slice(a, a + b) for a, b in zip(start, side, strict=True))] = 1
    return voxels, Boxes(np.stack([low, low + sides], axis=1), FIRST_CLASS + np.arange(count))


def scan_of(rng: np.random.Generator, affine: np.ndarray, size: tuple[int, ...], count: int, least: int) -> Scan:
    """Return a volume of cuboids with this affine."""
    voxels, boxes = cuboids(rng, size, count, least)
    return Scan(voxels, tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist()), "", affine, boxes=boxes)


def bounds(mask: np.ndarray) -> np.ndarray | None:
    """Return the (2, n) corners of the smallest box that holds all marked voxels."""
    at = np.argwhere(mask)
    return np.stack([at.min(axis=0), at.max(axis=0) + 1]) if len(at) else None


def check_boxes(voxels: np.ndarray, boxes: Boxes | None, within: int) -> None:
    """Assert that each channel's box is that of its bright voxels up to ``within`` voxels at each face.

    Less than a voxel of a cuboid may be left: then it may have no box or no bright voxel.
    """
    assert boxes is not None
    found = dict(zip(boxes.classes.tolist(), boxes.corners, strict=True))
    assert len(found) == len(boxes)
    assert set(found) <= set(range(FIRST_CLASS, FIRST_CLASS + len(voxels)))
    for number, channel in enumerate(voxels, FIRST_CLASS):
        seen = bounds(channel >= 0.5)
        if seen is None or number not in found:
            left = found.get(number) if seen is None else seen
            assert left is None or (left[1] - left[0]).min() <= within, (number, left)
        else:
            assert np.abs(found[number] - seen).max() <= within, (number, found[number], seen)
