"""Orientation and spacing of volumes, by MONAI, on (C, D, H, W) with the affine of (d, h, w).

MONAI's affine maps an array's own axes to the world, so that ``SAR`` (D to superior, H to anterior, W to the right)
is RAS in this project's axis order, and no transposition is needed.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Integer, Num
from torch import Tensor

from data.quarantine import BadStudy
from data.readers.checks import is_sheared, spacing_of

if TYPE_CHECKING:
    from monai.data import MetaTensor

_TIE = 1e-4
_SAME_SPACING = 1e-4  # headers hold float32: a voxel of 1.0000001 mm is one of 1 mm


def orient(
    voxels: Num[Tensor, "C D H W"], affine: Float64[np.ndarray, "4 4"]
) -> tuple[Num[Tensor, "C D2 H2 W2"], Float64[np.ndarray, "4 4"]]:
    """Flip and swap a volume's axes so that D, H and W point as nearly as possible to S, A and R."""
    from monai.transforms import Orientation

    turned = Orientation(axcodes="SAR", labels=(("L", "R"), ("P", "A"), ("I", "S")))(_meta(voxels, affine))
    return _plain(turned)


def resample(
    voxels: Float[Tensor, "C D H W"],
    affine: Float64[np.ndarray, "4 4"],
    spacing_mm: tuple[float, float, float] | None,
) -> tuple[Float[Tensor, "C D2 H2 W2"], Float64[np.ndarray, "4 4"]]:
    """Resample linearly to a voxel size, keeping an oblique volume's directions and making sheared axes orthogonal.

    A gantry tilt needs a grid that exceeds the scanned region: voxels outside get the lowest intensity.
    """
    sheared = is_sheared(affine)
    if spacing_mm is None:
        if sheared:
            raise BadStudy(
                f"sheared axes (gantry tilt) at {' x '.join(f'{size:.3g}' for size in spacing_of(affine))} mm",
                "axes at right angles where the recipe does not resample",
                "set the recipe's spacing_mm (--set spacing_mm='[2,2,2]')",
            )
        return voxels, affine
    if not sheared and np.allclose(spacing_of(affine), spacing_mm, rtol=_SAME_SPACING):
        return voxels, affine
    from monai.transforms import Spacing

    floor = voxels.min() if sheared else torch.zeros(())
    change = Spacing(spacing_mm, mode="bilinear", padding_mode="zeros" if sheared else "border", dtype=np.float32)
    out, new_affine = _plain(change(_meta(voxels - floor if sheared else voxels, affine)))
    return out.add_(floor), new_affine


def resize(
    voxels: Float[Tensor, "C D H W"], affine: Float64[np.ndarray, "4 4"], size: tuple[int, ...]
) -> tuple[Float[Tensor, "C D2 H2 W2"], Float64[np.ndarray, "4 4"]]:
    """Resample linearly to a number of voxels per axis that spans the same region of the world."""
    factor = np.array(voxels.shape[1:]) / np.array(size)
    to_old = np.diag([*factor, 1.0])
    to_old[:3, 3] = (factor - 1) / 2  # the first voxels' outer borders meet, not their centres
    return F.interpolate(voxels[None], size, mode="trilinear", align_corners=False)[0], affine @ to_old


def resample_label(
    label: Integer[np.ndarray, "D H W"],
    affine: Float64[np.ndarray, "4 4"],
    new_affine: Float64[np.ndarray, "4 4"],
    size: tuple[int, ...],
) -> Integer[np.ndarray, "D2 H2 W2"]:
    """Give each voxel of a new grid the id of the nearest voxel; outside the old grid it is 0.

    Half-way points all go to the later voxel. MONAI's and torch's nearest rounds them to even: at a factor of two
    (5 mm slices to 2.5 mm) one plane would be used three times and the next once.
    """
    to_old = np.linalg.inv(affine) @ new_affine
    if np.array_equal(label.shape, size) and np.allclose(to_old, np.eye(4), atol=_TIE):
        return label
    out = np.zeros(size, label.dtype)
    h, w = np.meshgrid(np.arange(size[1]), np.arange(size[2]), indexing="ij", sparse=True)
    for d in range(size[0]):
        index = [np.floor(row[0] * d + row[1] * h + row[2] * w + row[3] + 0.5 + _TIE) for row in to_old[:3]]
        near = [np.clip(axis, 0, extent - 1).astype(np.intp) for axis, extent in zip(index, label.shape, strict=True)]
        inside = [axis == spot for axis, spot in zip(index, near, strict=True)]
        out[d] = np.where(inside[0] & inside[1] & inside[2], label[near[0], near[1], near[2]], 0)
    return out


def _meta(voxels: Tensor, affine: np.ndarray) -> "MetaTensor":
    from monai.data import MetaTensor

    return MetaTensor(voxels, affine=torch.from_numpy(affine))


def _plain(image: Tensor) -> tuple[Tensor, np.ndarray]:
    from monai.data import MetaTensor

    assert isinstance(image, MetaTensor)
    return image.as_tensor(), np.asarray(image.affine, dtype=np.float64)
