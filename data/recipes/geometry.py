"""Orientation and spacing of volumes, by MONAI, on (C, D, H, W) with the affine of (d, h, w).

MONAI's affine maps an array's own axes to the world, so that ``SAR`` (D to superior, H to anterior, W to the right)
is RAS in this project's axis order, and no transposition is needed.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Num
from torch import Tensor

from data.quarantine import BadStudy
from data.recipes.grid import straight_grid, upright_grid, wanted_spacing
from data.scan import is_sheared, spacing_of

if TYPE_CHECKING:
    from monai.data import MetaTensor


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
    wanted = wanted_spacing(affine, spacing_mm)
    if not sheared and wanted == spacing_of(affine):
        return voxels, affine
    grid = upright_grid if sheared else straight_grid
    new_affine, size = grid(affine, tuple(voxels.shape[1:]), wanted)
    to_old = np.linalg.inv(affine) @ new_affine
    if not sheared:
        return _sample(voxels, to_old, size, "border"), new_affine
    floor = voxels.min()
    return _sample(voxels - floor, to_old, size, "zeros").add_(floor), new_affine


def _sample(
    voxels: Float[Tensor, "C D H W"], to_old: Float64[np.ndarray, "4 4"], size: tuple[int, ...], padding: str
) -> Float[Tensor, "C D2 H2 W2"]:
    """Interpolate linearly at the points of a grid; ``to_old`` takes its indices to those of the voxels."""
    from monai.networks.layers import AffineTransform

    layer = AffineTransform(normalized=False, mode="bilinear", padding_mode=padding, align_corners=False)
    return layer(voxels[None], theta=torch.from_numpy(to_old).float(), spatial_size=size)[0]


def resize(
    voxels: Float[Tensor, "C D H W"], affine: Float64[np.ndarray, "4 4"], size: tuple[int, ...]
) -> tuple[Float[Tensor, "C D2 H2 W2"], Float64[np.ndarray, "4 4"]]:
    """Resample linearly to a number of voxels per axis that spans the same region of the world."""
    factor = np.array(voxels.shape[1:]) / np.array(size)
    to_old = np.diag([*factor, 1.0])
    to_old[:3, 3] = (factor - 1) / 2  # the first voxels' outer borders meet, not their centres
    return F.interpolate(voxels[None], size, mode="trilinear", align_corners=False)[0], affine @ to_old


def _meta(voxels: Tensor, affine: np.ndarray) -> "MetaTensor":
    from monai.data import MetaTensor

    return MetaTensor(voxels, affine=torch.from_numpy(affine))


def _plain(image: Tensor) -> tuple[Tensor, np.ndarray]:
    from monai.data import MetaTensor

    assert isinstance(image, MetaTensor)
    return image.as_tensor(), np.asarray(image.affine, dtype=np.float64)
