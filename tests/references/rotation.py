"""Turns, voxel by voxel, from matrices of cosines and sines."""

import itertools
import math

import numpy as np

# What the ten labels of volumes mean: right angles about an axis, from the first to the second of two others.
ANGLES = [(0, 0, 1), (90, 0, 1), (180, 0, 1), (270, 0, 1), (270, 1, 2), (180, 1, 2), (90, 1, 2), (270, 0, 2),
          (180, 0, 2), (90, 0, 2)]  # fmt: skip


def rotation_matrix(label: int, dims: int) -> np.ndarray:
    """Return the matrix that takes where a voxel was, from the middle of the image, to where it goes."""
    angle, first, second = ANGLES[label]
    matrix = np.eye(dims)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix[[first, second], [first, second]] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def turn(image: np.ndarray, label: int) -> np.ndarray:
    """Move every voxel of an image (s, s) or (s, s, s) by the matrix of a label."""
    middle, matrix = (len(image) - 1) / 2, rotation_matrix(label, image.ndim)
    out = np.full(image.shape, np.nan)
    for voxel in itertools.product(range(len(image)), repeat=image.ndim):
        goes = matrix @ (np.array(voxel) - middle) + middle
        out[tuple(np.rint(goes).astype(int))] = image[voxel]
    return out
