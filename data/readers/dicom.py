"""DICOM series: slices ordered by position along their normal; a series that cannot be ordered is refused.

Oblique series keep their orientation. A gantry tilt (slices shifted in their own plane) becomes a sheared affine,
which a recipe's resampling makes orthogonal. Projections (X-ray) have no position and become pictures.
"""

import numpy as np
from jaxtyping import Bool, Float64, Num

from data.quarantine import EXPORT_SERIES, SPLIT_SERIES, BadStudy
from data.readers.dicom_slice import DicomSlice, read_slice
from data.scan import Scan, spacing_of

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_GAP_TOLERANCE = 0.02
_DIRECTION_TOLERANCE = 1e-3


def read_dicom(uris: tuple[str, ...]) -> Scan:
    """Read a series to (1, D, H, W) in HU or the scanner's units, or one projection to (1, H, W) in [0, 1].

    D is ordered along the normal of the slices. Raises BadStudy for other data than an image series, and for
    positions that form no regular grid: mixed orientations, missing slices, several slices at one position.
    """
    slices = [read_slice(uri) for uri in uris]
    first = slices[0]
    if first.position is None:
        return _projection(slices)
    _check_alike(slices)
    order, affine = _arrange(slices)
    _check_rescaled(slices)
    voxels, scale, offset = _stack([slices[i] for i in order])
    voxels = _without_padding(voxels, [slices[i].padding for i in order], scale)
    return Scan(voxels[None], spacing_of(affine), first.modality, affine, scale=scale, offset=offset)


def _projection(slices: list[DicomSlice]) -> Scan:
    if len(slices) != 1:
        raise BadStudy(f"{len(slices)} projections in one study", "1", "give each a study of its own")
    only = slices[0]
    pixels = _without_padding(only.pixels[None], [only.padding], only.slope)
    share = 2.0**-only.bits_stored  # as in a picture; a power of two leaves every percentile as it is
    return Scan(pixels, (1.0, 1.0), only.modality, scale=only.slope * share, offset=only.intercept * share)


def _check_alike(slices: list[DicomSlice]) -> None:
    """Refuse a series whose slices differ in direction, size or pixel spacing."""
    frames = np.array([[*s.along_w, *s.along_h] for s in slices])  # pyright: ignore[reportOptionalIterable]
    turned = int((np.abs(frames - frames[0]).max(axis=1) > _DIRECTION_TOLERANCE).sum())
    if turned:
        raise BadStudy(
            f"mixed orientations ({turned} of {len(slices)} slices differ from the first)", "one", SPLIT_SERIES
        )
    w, h = frames[0, :3], frames[0, 3:]
    if np.abs([w @ w - 1, h @ h - 1, w @ h]).max() > _DIRECTION_TOLERANCE:
        raise BadStudy(
            "direction cosines that are not perpendicular unit vectors",
            "unit vectors",
            "correct ImageOrientationPatient, or remove the series",
        )
    shapes = sorted({s.pixels.shape for s in slices})
    if len(shapes) > 1:
        raise BadStudy(f"slices of {len(shapes)} sizes ({shapes[0]} to {shapes[-1]})", "one size", SPLIT_SERIES)
    spacings = np.array([s.spacing_mm for s in slices])
    if not np.allclose(spacings, spacings[0], rtol=1e-3):
        raise BadStudy(
            f"pixel spacings from {spacings.min():.4g} to {spacings.max():.4g} mm", "one spacing", SPLIT_SERIES
        )


def _arrange(slices: list[DicomSlice]) -> tuple[list[int], Float64[np.ndarray, "4 4"]]:
    """Return the order of the slices along their normal, and the affine of (d, h, w) in RAS+ mm."""
    first = slices[0]
    assert first.along_w is not None
    assert first.along_h is not None
    assert first.spacing_mm is not None
    normal = np.cross(first.along_w, first.along_h)
    positions = np.array([s.position for s in slices])
    order = np.argsort(positions @ normal, kind="stable")
    step = _step(positions[order], normal, first)
    axes = np.stack([step, first.along_h * first.spacing_mm[0], first.along_w * first.spacing_mm[1]], axis=1)
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ axes
    affine[:3, 3] = _LPS_TO_RAS @ positions[order[0]]
    return order.tolist(), affine


def _step(
    positions: Float64[np.ndarray, "D 3"], normal: Float64[np.ndarray, "3"], first: DicomSlice
) -> Float64[np.ndarray, "3"]:
    """Return the vector in mm from one slice to the next; positions are in order along the normal."""
    if len(positions) == 1:
        if first.thickness_mm is None:
            raise BadStudy("1 slice without SliceThickness", "a known voxel size along D", "give the whole series")
        return normal * first.thickness_mm
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    num_same = int((gaps < 1e-3 + _GAP_TOLERANCE * typical).sum())
    if num_same:
        raise BadStudy(
            f"{num_same} of {len(positions)} slices at the position of another",
            "one slice per position",
            "split phases, echoes or repeated exports into series of their own",
        )
    if np.abs(gaps - typical).max() > _GAP_TOLERANCE * typical + 0.01:
        raise BadStudy(
            f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm between {len(positions)} slices (missing slices?)",
            f"even gaps within {_GAP_TOLERANCE:.0%} of {typical:.4g} mm",
            EXPORT_SERIES,
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    ideal = positions[0] + np.arange(len(positions))[:, None] * step
    bent = np.linalg.norm(positions - ideal, axis=1).max()
    if bent > 0.1 * typical + 0.01:
        raise BadStudy(f"slices up to {bent:.3g} mm off a straight line", "a straight stack", SPLIT_SERIES)
    return step


def _stack(slices: list[DicomSlice]) -> tuple[np.ndarray, float, float]:
    """Stack pixels to (D, H, W) as stored; where slopes differ between slices (PET), as float32 intensities."""
    scales = {(s.slope, s.intercept) for s in slices}
    if len(scales) == 1:
        voxels = np.stack([s.pixels for s in slices])
        voxels = voxels.astype(np.float32) if voxels.dtype.itemsize > 4 else voxels
        return voxels, slices[0].slope, slices[0].intercept
    planes = [s.pixels.astype(np.float32) * np.float32(s.slope) + np.float32(s.intercept) for s in slices]
    return np.stack(planes), 1.0, 0.0


def _check_rescaled(slices: list[DicomSlice]) -> None:
    """Refuse a series of which some slices lack slope and intercept: those would be off by 1024 HU and the like."""
    num_plain = sum(not s.is_rescaled for s in slices)
    if 0 < num_plain < len(slices):
        raise BadStudy(
            f"{num_plain} of {len(slices)} slices without RescaleSlope and RescaleIntercept",
            "these tags in all slices or in none",
            EXPORT_SERIES,
        )


def _without_padding(
    voxels: Num[np.ndarray, "D H W"], paddings: list[Bool[np.ndarray, "H W"] | None], scale: float
) -> Num[np.ndarray, "D H W"]:
    """Give voxels of padding the lowest intensity of the others: they are outside of what was scanned, like air."""
    if all(padding is None for padding in paddings):
        return voxels
    padded = np.stack([np.zeros(voxels.shape[1:], bool) if padding is None else padding for padding in paddings])
    if padded.all():
        return voxels
    rest = voxels[~padded]
    return np.where(padded, rest.min() if scale >= 0 else rest.max(), voxels).astype(voxels.dtype, copy=False)
