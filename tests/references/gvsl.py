"""GVSL's losses, slowly: images are moved, and compared window by window, voxel by voxel, in numpy float64."""

from itertools import product

import numpy as np

WINDOW, FLAT = 9, 1e-5


def affine_map(numbers: np.ndarray, n: int) -> np.ndarray:
    """Return the map (n, n + 1) of turns, scalings, shifts and shears."""
    clipped = np.clip(numbers, -1, 1)
    matrix = np.eye(n)
    planes = [(0, 1)] if n == 2 else [(0, 1), (0, 2), (1, 2)]
    for (a, b), number in zip(planes, clipped, strict=False):
        angle, turn = number * np.pi / 9, np.eye(n)
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    at = len(planes)
    matrix = np.diag(1 + clipped[at : at + n] / 4) @ matrix
    shear, last = np.eye(n), iter(clipped[at + 2 * n :])
    for a, b in product(range(n), repeat=2):
        if a != b:
            shear[a, b] = np.tan(next(last) * np.pi / 18)
    return np.hstack([shear @ matrix, numbers[at + n : at + 2 * n, None]])


def value_at(image: np.ndarray, place: np.ndarray) -> float:
    """Interpolate linearly at a place in voxels; beyond the image there is 0."""
    low, total = np.floor(place).astype(int), 0.0
    for corner in product((0, 1), repeat=image.ndim):
        voxel = low + corner
        if ((voxel >= 0) & (voxel < image.shape)).all():
            total += image[tuple(voxel)] * np.prod(1 - np.abs(place - voxel))
    return float(total)


def moved_affinely(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    found, middle = affine_map(numbers, image.ndim), (np.array(image.shape) - 1) / 2
    out = np.empty_like(image)
    for voxel in np.ndindex(image.shape):
        out[voxel] = value_at(image, found[:, :-1] @ (voxel - middle) + found[:, -1] + middle)
    return out


def moved_by_flow(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    out = np.empty_like(image)
    for voxel in np.ndindex(image.shape):
        out[voxel] = value_at(image, np.array(voxel) + flow[:, *voxel])
    return out


def correlation_loss(moved: np.ndarray, fixed: np.ndarray) -> float:
    """Compare images (b, c, *s); a window that reaches beyond the border holds 0 there."""
    found = []
    for one, other in zip(moved.reshape(-1, *moved.shape[2:]), fixed.reshape(-1, *moved.shape[2:]), strict=True):
        padded = [np.pad(image, WINDOW // 2) for image in (one, other)]
        for voxel in np.ndindex(one.shape):
            window = tuple(slice(at, at + WINDOW) for at in voxel)
            first, second = (image[window] - image[window].mean() for image in padded)
            found.append((first * second).sum() ** 2 / ((first**2).sum() * (second**2).sum() + FLAT))
    return 1 - float(np.mean(found))


def roughness(flow: np.ndarray) -> float:
    """Return the mean over axes of the mean squared difference of neighbours, of flows (b, n, *s)."""
    found = [np.diff(flow, axis=axis) ** 2 for axis in range(2, flow.ndim)]
    return float(np.mean([part.mean() if part.size else 0.0 for part in found]))


def loss(
    moving: np.ndarray,
    fixed: np.ndarray,
    numbers: np.ndarray,
    flow: np.ndarray,
    restored: np.ndarray,
    whole: np.ndarray,
) -> float:
    """Return the three losses' sum of images (b, c, *s), numbers (b, k) and flows (b, n, *s)."""
    moved = np.empty_like(moving)
    for sample, channel in np.ndindex(moving.shape[:2]):
        near = moved_affinely(moving[sample, channel], numbers[sample])
        moved[sample, channel] = moved_by_flow(near, flow[sample])
    return correlation_loss(moved, fixed) + roughness(flow) + float(np.mean((restored - whole) ** 2))
