"""The grid of a resampled volume: a function of the volume's size and affine and of the new voxel size alone.

A grid keeps the directions of the volume's axes and begins at its first voxel. No point of it lies outside the
voxels' centres, where an intensity would have to be invented.

Where the new voxel size is a simple fraction of the old one, a point may fall half-way between two voxels, over and
over: at 5 mm to 2.5 mm every second one. The nearest voxel, which gives a label its value, would then always be that
of the same side, and the label would be shifted against its image. Such a grid begins a little later, so that its
points lie evenly on both sides of the voxels' centres and none is half-way.
"""

from fractions import Fraction
from math import prod

import numpy as np
from jaxtyping import Float64

from data.quarantine import BadStudy
from data.scan import spacing_of

_SAME_MM = 1e-3  # a voxel size that close to the one asked for is kept
_ON_THE_EDGE = 3e-4  # of a new voxel: headers hold float32, DICOM positions are rounded
_SAME_RATIO = 1e-4
_FINEST = 64
_MOST_VOXELS = 2**28
_MOST_TIMES = 8
_SHIFT_SEEN = 10  # half-way points shift a label by up to 1 / (2 numerator) of a new voxel


def wanted_spacing(
    affine: Float64[np.ndarray, "4 4"], spacing_mm: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Return the voxel size asked for, with the volume's own along axes where the two are as good as equal."""
    d, h, w = (
        own if abs(own - new) <= _SAME_MM * min(1.0, new) else new
        for own, new in zip(spacing_of(affine), spacing_mm, strict=True)
    )
    return d, h, w


def straight_grid(
    affine: Float64[np.ndarray, "4 4"], size: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> tuple[Float64[np.ndarray, "4 4"], tuple[int, ...]]:
    """Return affine and size of the grid of another voxel size over a volume whose axes are at right angles."""
    steps = np.array(spacing_mm) / spacing_of(affine)
    lines = [_line(extent, float(step)) for extent, step in zip(size, steps, strict=True)]
    to_old = np.diag([*steps, 1.0])
    to_old[:3, 3] = [start for start, _ in lines]
    new_size = tuple(count for _, count in lines)
    _check_size(affine, size, spacing_mm, new_size)
    return affine @ to_old, new_size


def _line(num_voxels: int, step: float) -> tuple[float, int]:
    """Return where a grid along an axis begins, in voxels after the first, and its number of points."""
    last = num_voxels - 1
    start = _start(step) if _start(step) <= last else 0.0
    return start, int((last - start) / step + _ON_THE_EDGE) + 1


def _start(step: float) -> float:
    """Return the first point of a grid, in voxels: 0, or where that leads to half-way points, half-way to the next.

    Steps of a / b voxels come to b places between two voxels. For an odd b, 0 keeps them even around the voxels and
    away from half-way; for an even b, 1 / 2b does.
    """
    ratio = Fraction(step).limit_denominator(_FINEST)
    if ratio.denominator % 2 or ratio.numerator >= _SHIFT_SEEN or abs(step - ratio) > _SAME_RATIO * step:
        return 0.0
    return 1 / (2 * ratio.denominator)


def upright_grid(
    affine: Float64[np.ndarray, "4 4"], size: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> tuple[Float64[np.ndarray, "4 4"], tuple[int, ...]]:
    """Return affine and size of a grid at right angles over a volume with sheared axes (a gantry tilt).

    D keeps its direction. The grid holds the whole volume, and so also points outside it, but every plane of it
    along any axis has a point inside.
    """
    rotation, shear = _upright(affine)
    new_affine = np.eye(4)
    new_affine[:3, :3] = rotation * spacing_mm
    to_new = np.linalg.inv(new_affine[:3, :3]) @ affine[:3, :3]
    corners = to_new @ np.array(np.meshgrid(*[(0, extent - 1) for extent in size], indexing="ij")).reshape(3, -1)
    steps = np.array(spacing_mm) / np.diag(shear)
    first = corners.min(axis=1) + [_start(float(step)) / step for step in steps]
    counts = [max(int(length), 0) + 1 for length in corners.max(axis=1) - first + _ON_THE_EDGE]
    _check_size(affine, size, spacing_mm, tuple(counts))
    new_affine[:3, 3] = affine[:3, 3] + new_affine[:3, :3] @ first
    box = _box_inside(np.linalg.inv(affine) @ new_affine, size, tuple(counts))
    new_affine[:3, 3] += new_affine[:3, :3] @ [part.start for part in box]
    return new_affine, tuple(part.stop - part.start for part in box)


def _upright(affine: Float64[np.ndarray, "4 4"]) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "3 3"]]:
    """Split the axes into a rotation and an upper triangle with voxel sizes on its diagonal."""
    rotation, shear = np.linalg.qr(affine[:3, :3])
    signs = np.sign(np.diag(shear))
    return rotation * signs, shear * signs[:, None]


def _box_inside(
    to_old: Float64[np.ndarray, "4 4"], old_size: tuple[int, ...], size: tuple[int, ...]
) -> tuple[slice, ...]:
    """Return the box of a grid's planes that have a point among the old voxels' centres."""
    last = np.array(old_size) - 1
    h, w = np.meshgrid(np.arange(size[1]), np.arange(size[2]), indexing="ij", sparse=True)
    seen = [np.zeros(extent, bool) for extent in size]
    for d in range(size[0]):
        places = [row[0] * d + row[1] * h + row[2] * w + row[3] for row in to_old[:3]]
        inside = [(x >= -_ON_THE_EDGE) & (x <= end + _ON_THE_EDGE) for x, end in zip(places, last, strict=True)]
        plane = inside[0] & inside[1] & inside[2]
        seen[0][d] = plane.any()
        seen[1] |= plane.any(axis=1)
        seen[2] |= plane.any(axis=0)
    found = [np.flatnonzero(axis) for axis in seen]
    if not found[0].size:
        raise BadStudy(
            f"a sheared volume of {' x '.join(map(str, old_size))} voxels without a point of the new grid",
            "a volume thicker than the recipe's voxels",
            "lower the recipe's spacing_mm",
        )
    return tuple(slice(int(planes[0]), int(planes[-1]) + 1) for planes in found)


def _check_size(
    affine: Float64[np.ndarray, "4 4"],
    size: tuple[int, ...],
    spacing_mm: tuple[float, float, float],
    new_size: tuple[int, ...],
) -> None:
    """Refuse a grid that fits into no memory: the header is wrong, and the process would be killed."""
    if prod(new_size) > max(_MOST_VOXELS, _MOST_TIMES * prod(size)):
        old, new = (" x ".join(f"{part:.4g}" for part in parts) for parts in (spacing_of(affine), spacing_mm))
        raise BadStudy(
            f"{' x '.join(map(str, size))} voxels of {old} mm, or {' x '.join(map(str, new_size))} of {new} mm",
            f"at most {_MOST_VOXELS} voxels, or {_MOST_TIMES} times as many as were read",
            "correct the header's spacing, or raise the recipe's spacing_mm",
        )
