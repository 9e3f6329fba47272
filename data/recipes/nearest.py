"""Label maps on a new grid: each of its voxels gets the id of the nearest old voxel."""

import numpy as np
from jaxtyping import Float64, Integer

_TIE = 1e-4
_STRAIGHT = 1e-3  # of a voxel, over the whole volume


def resample_label(
    label: Integer[np.ndarray, "D H W"],
    affine: Float64[np.ndarray, "4 4"],
    new_affine: Float64[np.ndarray, "4 4"],
    size: tuple[int, ...],
) -> Integer[np.ndarray, "D2 H2 W2"]:
    """Give each voxel of a new grid the id of the nearest voxel; outside the old grid it is 0.

    Points half-way between two voxels take the earlier and the later one by turns. MONAI's and torch's nearest round
    them to even: at a factor of two one plane would be used three times and the next once.
    """
    to_old = np.linalg.inv(affine) @ new_affine
    if np.array_equal(label.shape, size) and np.allclose(to_old, np.eye(4), atol=_TIE):
        return label
    turned = to_old[:3, :3] - np.diag(np.diag(to_old[:3, :3]))
    return (_along_axes if np.abs(turned @ size).max() < _STRAIGHT else _anywhere)(label, to_old, size)


def _along_axes(
    label: Integer[np.ndarray, "D H W"], to_old: Float64[np.ndarray, "4 4"], size: tuple[int, ...]
) -> Integer[np.ndarray, "D2 H2 W2"]:
    """Take planes, one axis after the other."""
    for axis, extent in enumerate(size):
        index = _nearest(to_old[axis, axis] * np.arange(extent) + to_old[axis, 3])
        near = np.clip(index, 0, label.shape[axis] - 1)
        label = label.take(near, axis=axis)
        label[(slice(None),) * axis + (near != index,)] = 0
    return label


def _nearest(places: Float64[np.ndarray, "n"]) -> Integer[np.ndarray, "n"]:
    """Round places; of those half-way, in order, the first goes down, the next up, and so on."""
    below = np.floor(places)
    index = np.floor(places + 0.5)
    ties = np.flatnonzero(np.abs(places - below - 0.5) < _TIE)
    index[ties] = below[ties] + np.arange(len(ties)) % 2
    return index.astype(np.intp)


def _anywhere(
    label: Integer[np.ndarray, "D H W"], to_old: Float64[np.ndarray, "4 4"], size: tuple[int, ...]
) -> Integer[np.ndarray, "D2 H2 W2"]:
    """Look voxels up plane by plane, for a grid whose axes are turned against those of the label (a gantry tilt)."""
    out = np.zeros(size, label.dtype)
    h, w = np.meshgrid(np.arange(size[1]), np.arange(size[2]), indexing="ij", sparse=True)
    for d in range(size[0]):
        index = [np.floor(row[0] * d + row[1] * h + row[2] * w + row[3] + 0.5 + _TIE) for row in to_old[:3]]
        near = [np.clip(axis, 0, extent - 1).astype(np.intp) for axis, extent in zip(index, label.shape, strict=True)]
        inside = [axis == spot for axis, spot in zip(index, near, strict=True)]
        out[d] = np.where(inside[0] & inside[1] & inside[2], label[near[0], near[1], near[2]], 0)
    return out
