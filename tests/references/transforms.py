"""The transforms of views, one image and one voxel at a time, in float64; arrays are (c, *s)."""

import colorsys
from collections.abc import Callable, Iterator
from itertools import product
from math import ceil, cos, exp, floor, radians, sin

import numpy as np


def _voxels(image: np.ndarray) -> Iterator[tuple[int, tuple[int, ...]]]:
    for channel, *index in np.ndindex(image.shape):
        yield channel, tuple(index)


def flip(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    out = np.empty_like(image)
    for channel, index in _voxels(image):
        source = [
            length - 1 - i if mirrored else i
            for i, length, mirrored in zip(index, image.shape[1:], numbers, strict=True)
        ]
        out[(channel, *index)] = image[(channel, *source)]
    return out


def _turn_back(point: list[float], first: int, second: int, degrees: float) -> None:
    """Turn a point in the plane of two axes by an angle, from the second axis to the first."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    point[first], point[second] = c * point[first] + s * point[second], -s * point[first] + c * point[second]


def _source(index: tuple[int, ...], size: tuple[int, ...], numbers: np.ndarray) -> list[float]:
    """Undo, for one point, the scaling, the shift and the turns."""
    n = len(size)
    scales, degrees, shift = numbers[:n], numbers[n : 3 * n - 3], numbers[3 * n - 3 :]
    point = [(i - (size[k] - 1) / 2) / scales[k] - shift[k] for k, i in enumerate(index)]
    if n == 2:
        _turn_back(point, 0, 1, degrees[0])
    else:
        _turn_back(point, 0, 1, degrees[2])
        _turn_back(point, 1, 2, degrees[0])
        _turn_back(point, 2, 0, degrees[1])
    return [p + (size[k] - 1) / 2 for k, p in enumerate(point)]


def affine(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    out, size = np.empty_like(image), image.shape[1:]
    for channel, index in _voxels(image):
        point = _source(index, size, numbers)
        if any(not -0.5 <= p < length - 0.5 for p, length in zip(point, size, strict=True)):
            out[(channel, *index)] = image[channel].min()
            continue
        total = 0.0
        for corner in product((0, 1), repeat=len(size)):
            weight, at = 1.0, []
            for p, length, upper in zip(point, size, corner, strict=True):
                share = p - floor(p)
                weight *= share if upper else 1 - share
                at.append(min(max(floor(p) + upper, 0), length - 1))
            total += weight * image[(channel, *at)]
        out[(channel, *index)] = total
    return out


def anisotropy(image: np.ndarray, numbers: np.ndarray, beyond: str = "zero") -> np.ndarray:
    axis, factor = int(numbers[0]), numbers[1]
    return np.apply_along_axis(lambda line: _thinned(line, factor, beyond), axis + 1, image)


def _thinned(line: np.ndarray, factor: float, beyond: str) -> np.ndarray:
    length = len(line)
    if length == 1:
        return line
    thin = []
    for k in range(ceil(length / factor)):
        place = 0.5 * (factor - 1) + k * factor
        if place >= length - 0.5:
            thin.append(0.0 if beyond == "zero" else line[-1])
        else:
            thin.append(line[floor(place + 0.5)])
    out = np.empty(length)
    for i in range(length):
        place = min(max((i - 0.5 * (factor - 1)) / factor, 0), len(thin) - 1)
        below = floor(place)
        above = min(below + 1, len(thin) - 1)
        out[i] = (1 - (place - below)) * thin[below] + (place - below) * thin[above]
    return out


def blur(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    for axis, sigma in enumerate(numbers, start=1):
        image = np.apply_along_axis(_blurred, axis, image, sigma)
    return image


def _blurred(line: np.ndarray, sigma: float) -> np.ndarray:
    reach, mirrored = floor(4 * sigma + 0.5), np.concatenate([line, line[::-1]])
    if reach == 0:
        return line
    kernel = [exp(-(step**2) / (2 * sigma**2)) for step in range(-reach, reach + 1)]
    return np.array([
        sum(weight * mirrored[(i + step) % len(mirrored)] for step, weight in enumerate(kernel, -reach)) / sum(kernel)
        for i in range(len(line))
    ])  # fmt: skip


def bias_field(image: np.ndarray, numbers: np.ndarray, order: int = 3) -> np.ndarray:
    out, size = np.empty_like(image), image.shape[1:]
    for channel, index in _voxels(image):
        place = [2 * i / (length - 1) - 1 if length > 1 else 0.0 for i, length in zip(index, size, strict=True)]
        total, number = 0.0, iter(numbers)
        for powers in product(range(order + 1), repeat=len(size)):
            if sum(powers) <= order:
                total += next(number) * float(np.prod([p**power for p, power in zip(place, powers, strict=True)]))
        out[(channel, *index)] = image[(channel, *index)] * exp(total)
    return out


def gamma(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    out = np.empty_like(image)
    for channel, index in _voxels(image):
        value = image[(channel, *index)]
        out[(channel, *index)] = (-1 if value < 0 else 1) * abs(value) ** numbers[0]
    return out


def _grey(pixel: np.ndarray) -> float:
    return float(0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]) if len(pixel) == 3 else float(pixel.mean())


def _pixels(image: np.ndarray, change: Callable[[np.ndarray], object]) -> np.ndarray:
    out = np.empty_like(image)
    for index in np.ndindex(image.shape[1:]):
        out[(slice(None), *index)] = change(image[(slice(None), *index)])
    return out


def grey(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return _pixels(image, lambda pixel: [_grey(pixel)] * 3) if len(image) == 3 else image


def _turned(pixel: np.ndarray, turn: float) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)


def colour_jitter(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    for change in np.argsort(numbers[4:]):
        x = numbers[change]
        if change == 0:
            image = image * x
        elif change == 1:
            middle = np.mean([_grey(image[(slice(None), *index)]) for index in np.ndindex(image.shape[1:])])
            image = image * x + middle * (1 - x)
        elif len(image) == 3:
            image = _pixels(
                image, lambda p, x=x, change=change: p * x + _grey(p) * (1 - x) if change == 2 else _turned(p, x)
            )
        image = np.clip(image, 0, 1)
    return image


def solarise(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    out = np.empty_like(image)
    for channel, index in _voxels(image):
        value = image[(channel, *index)]
        out[(channel, *index)] = 1 - value if value >= 0.5 else value
    return out
