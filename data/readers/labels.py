"""Labels: aligned with their image's voxels by exact flips and swaps of axes, or refused; never resampled here."""

import numpy as np
from jaxtyping import Float64, Num, UInt8, UInt16
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from data.quarantine import BadStudy
from data.scan import Scan

_LARGEST = np.iinfo(np.uint16).max
_TOLERANCE_VOXELS = 0.1
_ROUNDING = 1e-3  # a slope of float32(1 / 255) takes 255 to 1.00000006
_RESAMPLE = "resample the label onto its image, or pair it with the image that it was drawn on"


def align_label(label: Scan, image: Scan) -> UInt8[np.ndarray, "D H W"] | UInt16[np.ndarray, "D H W"]:
    """Return a label as integers on the voxels of its image.

    Raises BadStudy where the two grids differ by more than a tenth of a voxel or the values are not label ids.
    """
    assert label.affine is not None, "labels are volumes"
    assert image.affine is not None, "only volumes have label maps"
    if label.voxels.shape[0] != 1:
        raise BadStudy(f"label: {label.voxels.shape[0]} channels", "1", "merge them into one map of ids")
    # The turn between the two grids, not of each in the world: at 45 degrees rounding alone names an axis.
    turn = io_orientation(np.linalg.inv(image.affine) @ label.affine)
    values = apply_orientation(label.voxels[0], turn)
    affine = label.affine @ inv_ornt_aff(turn, label.size)
    if values.shape != image.size:
        raise BadStudy(f"label: shape {values.shape} (D, H, W)", f"the image's shape {image.size}", _RESAMPLE)
    _check_grid(affine, image)
    return label_ids(values, label.scale, label.offset)


def _check_grid(affine: Float64[np.ndarray, "4 4"], image: Scan) -> None:
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in image.size], (1,), indexing="ij")).reshape(4, -1)
    assert image.affine is not None
    apart_mm = np.linalg.norm(((affine - image.affine) @ corners)[:3], axis=0).max()
    if apart_mm > _TOLERANCE_VOXELS * min(image.spacing_mm):
        allowed_mm = _TOLERANCE_VOXELS * min(image.spacing_mm)
        raise BadStudy(
            f"label: an affine that puts it {apart_mm:.3g} mm off its image",
            f"the image's affine within {_TOLERANCE_VOXELS} voxel ({allowed_mm:.3g} mm)",
            _RESAMPLE,
        )


def label_ids(
    values: Num[np.ndarray, "D H W"], scale: float = 1.0, offset: float = 0.0
) -> UInt8[np.ndarray, "D H W"] | UInt16[np.ndarray, "D H W"]:
    """Return label values as uint8, or uint16 where an id is above 255; raise BadStudy for other values than ids."""
    if (scale, offset) != (1.0, 0.0):
        values = values * np.float64(scale) + offset
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise BadStudy("label: NaN or infinite values", "integers", "replace them by 0 (background)")
        ids = np.rint(values)
        apart = np.abs(values - ids) > _ROUNDING
        if apart.any():
            example = float(values[apart].flat[0])
            raise BadStudy(
                f"label: values that are not integers, such as {example:.6g}",
                "integer ids",
                "resample labels by nearest neighbour",
            )
        values = ids
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > _LARGEST:
        raise BadStudy(f"label: values from {low:g} to {high:g}", f"ids from 0 to {_LARGEST}", "renumber the ids")
    return np.ascontiguousarray(values, dtype=np.uint8 if high <= 255 else np.uint16)
