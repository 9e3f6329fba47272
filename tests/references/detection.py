"""Detection, box by box and value by value, in plain Python: slow, and written independently of methods/detection."""

import math
from collections.abc import Sequence

import numpy as np


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes of any number of axes, 0 where one has no inside."""
    n = len(first) // 2
    shared, one, other = 1.0, 1.0, 1.0
    for axis in range(n):
        shared *= max(0.0, min(first[n + axis], second[n + axis]) - max(first[axis], second[axis]))
        one *= max(0.0, first[n + axis] - first[axis])
        other *= max(0.0, second[n + axis] - second[axis])
    return shared / (one + other - shared) if shared > 0 else 0.0


def kept(
    boxes: Sequence[Sequence[float]], scores: Sequence[float], threshold: float, classes: Sequence[int]
) -> list[int]:
    """The boxes that are kept, in the order of their scores, by looking at one after the other."""
    chosen: list[int] = []
    for number in sorted(range(len(boxes)), key=lambda place: (-scores[place], place)):
        rivals = [other for other in chosen if classes[other] == classes[number]]
        if all(overlap(boxes[other], boxes[number]) <= threshold for other in rivals):
            chosen.append(number)
    return chosen


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """The value of a plane between its values; beyond the border the border's, and 0 more than a value beyond it."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    return (
        (1 - (y - top)) * ((1 - (x - left)) * plane[top, left] + (x - left) * plane[top, right])
        + (y - top) * ((1 - (x - left)) * plane[bottom, left] + (x - left) * plane[bottom, right])
    )  # fmt: skip


def aligned(planes: np.ndarray, region: Sequence[float], stride: float, size: int, samples: int) -> np.ndarray:
    """The (channels, size, size) features of one region of a map (channels, height, width)."""
    top, left, bottom, right = (edge / stride - 0.5 for edge in region)
    high, wide = (bottom - top) / size, (right - left) / size
    rows, columns = (samples, samples) if samples else (math.ceil(high), math.ceil(wide))
    out = np.zeros((len(planes), size, size))
    for channel, plane in enumerate(planes):
        for row in range(size):
            for column in range(size):
                total = 0.0
                for step in range(rows):
                    for other in range(columns):
                        y = top + row * high + (step + 0.5) * high / rows
                        x = left + column * wide + (other + 0.5) * wide / columns
                        total += bilinear(plane, y, x)
                out[channel, row, column] = total / max(1, rows * columns)
    return out


def level(region: Sequence[float], num_levels: int) -> int:
    """The level of a pyramid with strides 4, 8, 16, ... by the formula of the FPN paper: 224 pixels on stride 16."""
    side = math.sqrt(max(0.0, region[2] - region[0]) * max(0.0, region[3] - region[1]))
    return 0 if side == 0 else min(max(math.floor(4 + math.log2(side / 224 + 1e-9)) - 2, 0), num_levels - 1)


def assigned(
    candidates: Sequence[Sequence[float]],
    boxes: Sequence[Sequence[float]],
    positive: float,
    negative: float,
    least: float | None,
) -> list[int]:
    """The number of each candidate's box, -1 for background, -2 for undecided, as MaxIoUAssigner decides."""
    table = [[overlap(candidate, box) for box in boxes] for candidate in candidates]
    found = []
    for row in table:
        most = max(row, default=0.0)
        found.append(-1 if most < negative else row.index(most) if most >= positive else -2)
    for number in range(len(boxes) if least is not None else 0):
        most = max((row[number] for row in table), default=0.0)
        for place, row in enumerate(table):
            if most >= least and row[number] == most:
                found[place] = number
    return found


def splitmix(seed: int, counter: int) -> float:
    """The number in [0, 1) of a counter, counted from 0, in Python's unbounded integers."""
    word = (seed + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return ((word ^ (word >> 31)) >> 11) / 2**53


def anchors(height: int, width: int, stride: int, scale: float, ratios: Sequence[float]) -> list[list[float]]:
    """The anchors of a map, place by place and ratio by ratio."""
    found = []
    for row in range(height):
        for column in range(width):
            for ratio in ratios:
                tall, wide = stride * scale * math.sqrt(ratio), stride * scale / math.sqrt(ratio)
                y, x = (row + 0.5) * stride, (column + 0.5) * stride
                found.append([y - tall / 2, x - wide / 2, y + tall / 2, x + wide / 2])
    return found
