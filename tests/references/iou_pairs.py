"""The IoU-positives thesis' Algorithm 1, and the exact distributions on tiny images, by plain loops."""

from fractions import Fraction
from functools import cache
from itertools import product
from math import prod

import numpy as np

Corner = tuple[int, ...]


@cache
def iou_at(distance: Corner, size: Corner) -> Fraction:
    """Compute the IoU of two boxes of one size whose corners are a distance apart along each axis, exactly."""
    shared = prod(max(0, c - d) for d, c in zip(distance, size, strict=True))
    return Fraction(shared, 2 * prod(size) - shared)


def iou(first: Corner, second: Corner, size: tuple[int, ...]) -> Fraction:
    """Compute the IoU of two boxes of one size, exactly."""
    return iou_at(tuple(abs(a - b) for a, b in zip(first, second, strict=True)), size)


@cache
def inside(value: Fraction, interval: tuple[float, float]) -> bool:
    """Say whether an IoU lies in a closed interval whose bounds mean the decimals that were written."""
    return Fraction(str(interval[0])) <= value <= Fraction(str(interval[1]))


def partners(
    extent: tuple[int, ...], size: tuple[int, ...], interval: tuple[float, float]
) -> dict[Corner, list[Corner]]:
    """List, for each first box that has a partner, all its partners."""
    corners = list(product(*(range(s - c + 1) for s, c in zip(extent, size, strict=True))))
    found = {a: [b for b in corners if inside(iou(a, b, size), interval)] for a in corners}
    return {a: bs for a, bs in found.items() if bs}


def algorithm_1(
    rng: np.random.Generator, extent: tuple[int, ...], size: tuple[int, ...], interval: tuple[float, float]
) -> tuple[Corner, Corner, bool]:
    """Draw a pair as the thesis prints it, with r_1 = 30 and r_2 = 4; the flag says whether it lies inside."""
    room = np.array(extent) - np.array(size) + 1
    for _ in range(4):
        first = tuple(int(x) for x in rng.integers(room))
        for _ in range(30):
            second = tuple(int(x) for x in rng.integers(room))
            if inside(iou(first, second, size), interval):
                return first, second, True
    return first, second, False
