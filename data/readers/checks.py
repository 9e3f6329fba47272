"""Checks of every volume, whatever its file format: first geometry, then voxels."""

import numpy as np
from jaxtyping import Float64, Num

from data.quarantine import BadStudy, unpaired_label
from data.scan import spacing_of

SPACING_RANGE_MM = (0.005, 200.0)
_SINGULAR = 1e-6
LARGEST_INTENSITY = 1e12
_FEW_IDS, _MOST_IDS = 6, 256
_ALIKE = 0.6
_SAMPLE = 20_000
_ROUNDING = 1e-3


def check_affine(affine: Float64[np.ndarray, "4 4"]) -> None:
    """Raise BadStudy for an invalid affine: NaN, singular, or with voxel sizes that no scanner has."""
    if not np.isfinite(affine).all():
        raise BadStudy(
            f"{np.count_nonzero(~np.isfinite(affine))} values of the affine that are NaN or infinite",
            "16 finite numbers",
            "correct the header's sform or qform",
        )
    spacing = spacing_of(affine)
    shown = " x ".join(f"{size:.4g}" for size in spacing)
    low, high = SPACING_RANGE_MM
    if min(spacing) > 0 and not all(low <= size <= high for size in spacing):
        raise BadStudy(
            f"voxels of {shown} mm (D, H, W)",
            f"sizes from {low} to {high} mm",
            "correct the header's spacing or unit",
        )
    volume = abs(np.linalg.det(affine[:3, :3]))
    if volume <= _SINGULAR * np.prod(spacing):
        raise BadStudy(
            f"a singular affine (voxels of {shown} mm have a volume of {volume:.3g} mm3)",
            "three axes that span space",
            "correct the header's sform or qform",
        )


def check_voxels(voxels: Num[np.ndarray, "..."], scale: float = 1.0, offset: float = 0.0) -> None:
    """Raise BadStudy for intensities of no image: NaN, infinite, absurd, constant, or only two values (a mask)."""
    if voxels.dtype.kind == "f":
        num_bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
        if num_bad:
            raise BadStudy(
                f"{num_bad} of {voxels.size} voxels that are NaN or infinite",
                "finite intensities",
                "replace them by the intensity of air or background",
            )
    low, high = voxels.min(), voxels.max()
    limits = float(low) * scale + offset, float(high) * scale + offset
    if not all(abs(limit) <= LARGEST_INTENSITY for limit in limits):
        raise BadStudy(
            f"intensities from {min(limits):.4g} to {max(limits):.4g}",
            f"at most {LARGEST_INTENSITY:g} in size, as any scanner gives",
            "replace what stands for missing voxels by the intensity of air, or correct the slope",
        )
    if low == high:
        raise BadStudy(f"constant intensities (every voxel is {low})", "some contrast", "remove it from the source")
    if all(((plane == low) | (plane == high)).all() for plane in voxels.reshape(-1, voxels.shape[-1])):
        raise BadStudy(
            f"only 2 distinct intensities ({low} and {high})",
            "an image, not a mask",
            "pair it with its image by option labels, or exclude it by option images",
        )


def check_no_label_map(voxels: Num[np.ndarray, "C D H W"], scale: float = 1.0, offset: float = 0.0) -> None:
    """Raise BadStudy for a label map: few whole numbers from 0 on, mostly beside their like.

    A scan has noise, and so more intensities; a sample of its voxels shows that.
    """
    if np.unique(voxels.ravel()[:: max(1, voxels.size // _SAMPLE)]).size > _MOST_IDS:
        return
    found = np.unique(voxels)
    values = found.astype(np.float64) * scale + offset
    ids = np.rint(values)
    if found.size > _MOST_IDS or abs(values[0]) > _ROUNDING or np.abs(values - ids).max() > _ROUNDING:
        return
    alike = [_share_alike(voxels, axis) for axis in range(1, 4) if voxels.shape[axis] > 1]
    if found.size <= _FEW_IDS or min(alike, default=0.0) >= _ALIKE:
        raise unpaired_label(f"{found.size} whole numbers from 0 to {ids[-1]:g}")


def _share_alike(voxels: Num[np.ndarray, "C D H W"], axis: int) -> float:
    """Return the share of equal pairs among neighbours along an axis of which neither is the lowest value."""
    first = np.take(voxels, range(voxels.shape[axis] - 1), axis)
    second = np.take(voxels, range(1, voxels.shape[axis]), axis)
    inside = np.minimum(first, second) > voxels.min()
    return float((first == second)[inside].mean()) if inside.any() else 1.0
