"""Orientation and spacing of volumes, by MONAI, on (C, D, H, W) with the affine of (d, h, w).

MONAI's affine maps an array's own axes to the world, so that ``SAR`` (D to superior, H to anterior, W to the right)
is RAS in this project's axis order, and no transposition is needed.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from torch import Tensor

from data.quarantine import BadStudy
from data.readers.checks import is_sheared, spacing_of

Interpolation = Literal["bilinear", "nearest"]


def orient(
    voxels: Float[Tensor, "C D H W"], affine: Float64[np.ndarray, "4 4"]
) -> tuple[Float[Tensor, "C D2 H2 W2"], Float64[np.ndarray, "4 4"]]:
    """Turn a volume by flips and swaps of axes so that D, H and W run most nearly to S, A and R."""
    turned = Orientation(axcodes="SAR", labels=(("L", "R"), ("P", "A"), ("I", "S")))(_meta(voxels, affine))
    return _plain(turned)


def resample(
    voxels: Float[Tensor, "C D H W"],
    affine: Float64[np.ndarray, "4 4"],
    spacing_mm: tuple[float, float, float] | None,
    mode: Interpolation,
) -> tuple[Float[Tensor, "C D2 H2 W2"], Float64[np.ndarray, "4 4"]]:
    """Resample to a voxel size, keeping an oblique volume's directions and making sheared axes orthogonal.

    A gantry tilt needs a grid that leaves the scanned region: what lies outside becomes the lowest intensity.
    """
    sheared = is_sheared(affine)
    if spacing_mm is None:
        if sheared:
            raise BadStudy(
                f"sheared axes (gantry tilt) at {' x '.join(f'{size:.3g}' for size in spacing_of(affine))} mm",
                "axes at right angles where the recipe does not resample",
                "set the recipe's spacing_mm",
            )
        return voxels, affine
    if not sheared and np.allclose(spacing_of(affine), spacing_mm, rtol=1e-4):
        return voxels, affine
    floor = voxels.min() if sheared else torch.zeros(())
    change = Spacing(spacing_mm, mode=mode, padding_mode="zeros" if sheared else "border", dtype=np.float32)
    out, new_affine = _plain(change(_meta(voxels - floor if sheared else voxels, affine)))
    return out.add_(floor), new_affine


def _meta(voxels: Tensor, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(voxels, affine=torch.from_numpy(affine))


def _plain(image: Tensor) -> tuple[Tensor, np.ndarray]:
    assert isinstance(image, MetaTensor)
    return image.as_tensor(), np.asarray(image.affine, dtype=np.float64)
