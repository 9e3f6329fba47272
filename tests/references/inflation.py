"""2D kernels as 3D ones and for other channels, number by number."""

from itertools import product

import numpy as np


def i3d(kernel: np.ndarray, depth: int) -> np.ndarray:
    """Repeat a kernel (o, i, h, w) over a depth, each time divided by it."""
    found = np.zeros((*kernel.shape[:2], depth, *kernel.shape[2:]))
    for o, i, d, h, w in product(*map(range, found.shape)):
        found[o, i, d, h, w] = kernel[o, i, h, w] / depth
    return found


def vdt(kernel: np.ndarray, depth: int) -> np.ndarray:
    """Put a kernel (o, i, h, w) into the middle of an odd depth."""
    found = np.zeros((*kernel.shape[:2], depth, *kernel.shape[2:]))
    for o, i, h, w in product(*map(range, kernel.shape)):
        found[o, i, (depth - 1) // 2, h, w] = kernel[o, i, h, w]
    return found


def vdt_stem(kernel: np.ndarray, depth: int) -> np.ndarray:
    """Put red before, green in, and blue behind the middle of an odd depth: (o, 3, h, w) becomes (o, 1, d, h, w)."""
    found, middle = np.zeros((len(kernel), 1, depth, *kernel.shape[2:])), (depth - 1) // 2
    for o, h, w in product(range(len(kernel)), *map(range, kernel.shape[2:])):
        red, green, blue = kernel[o, :, h, w]
        found[o, 0, middle - 1, h, w] = red
        found[o, 0, middle, h, w] = green
        found[o, 0, middle + 1, h, w] = blue
    return found


def for_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Give each of some channels an equal share of the sum over a kernel's own."""
    found = np.zeros((len(kernel), channels, *kernel.shape[2:]))
    for o, c in product(range(len(kernel)), range(channels)):
        for i in range(kernel.shape[1]):
            found[o, c] += kernel[o, i] / channels
    return found
