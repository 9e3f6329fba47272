"""Readers: one study -> Scan in its own geometry; the only place that knows formats, RAS and LPS, rescale slopes.

Every file is either read correctly or refused by BadStudy for its true reason. Names, dates and DICOM tags stop here.
"""

import hashlib

import numpy as np

from data.quarantine import BadStudy
from data.readers.array import read_array_image
from data.readers.boxes import boxes_on
from data.readers.checks import check_affine, check_no_label_map, check_voxels
from data.readers.dicom import read_dicom
from data.readers.itk import read_itk
from data.readers.labels import align_label
from data.readers.neuro import read_neuro
from data.readers.nifti import read_nifti
from data.readers.picture import check_not_turned, read_picture
from data.readers.stack import read_stack
from data.scan import Scan, spacing_of
from data.sources.study import ITK_SUFFIXES, NEURO_SUFFIXES, Study, suffix_of

__all__ = ["content_digest", "read_study", "read_volume"]


def read_study(study: Study) -> Scan:
    """Read a study's voxels, geometry and label in the order of its files.

    Returns (C, D, H, W) for volumes with the affine of (d, h, w) in RAS+ mm, or (C, H, W) for pictures. CT is in HU:
    a stored voxel ``v`` means ``v * scale + offset``. Raises BadStudy for studies that cannot be used.
    """
    if study.fault is not None:
        raise study.fault.with_traceback(None)
    scan = _read_image(study)
    if study.rescale is not None:
        slope, intercept = study.rescale
        # Of a picture it means the numbers in the file (DeepLesion: HU + 32768), not their share of 65535.
        scale, offset = (1.0, 0.0) if scan.affine is None else (scan.scale, scan.offset)
        scan = scan.with_(scale=scale * slope, offset=offset * slope + intercept)
    check_voxels(scan.voxels, scan.scale, scan.offset)
    if study.kind == "volume":
        check_no_label_map(scan.voxels, scan.scale, scan.offset)
    scan = scan.with_(modality=scan.modality or study.modality or "")
    if study.boxes is not None:
        if study.kind == "picture":
            check_not_turned(study.image[0])
        scan = scan.with_(boxes=boxes_on(scan.size, study.boxes, study.size))
    return scan.with_(label=_read_label(study.label, scan)) if study.label else scan


def _read_image(study: Study) -> Scan:
    if study.kind == "dicom":
        scan = read_dicom(study.image)
        if scan.affine is not None:
            check_affine(scan.affine)
        return scan
    if study.kind == "picture":
        return read_picture(study.image[0])
    if study.kind == "stack":
        assert study.stack is not None
        return read_stack(study.image, study.stack)
    if study.kind == "array":
        uri, name, index = study.image
        return read_array_image(uri, name, int(index))
    if len(study.image) == 1:
        return read_volume(study.image[0], study.num_channels)
    return _stack([read_volume(uri) for uri in study.image])


def _read_label(uri: str, image: Scan) -> np.ndarray:
    try:
        label = read_volume(uri)
    except BadStudy as fault:
        raise fault.about("label") from None
    return align_label(label, image)


def read_volume(uri: str, num_channels: int = 1) -> Scan:
    """Read one volume file, checking its geometry but not its voxel values (it may be a label)."""
    name = uri.partition("?")[0]
    if suffix_of(name, ITK_SUFFIXES):
        scan = read_itk(uri, num_channels)
    elif suffix_of(name, NEURO_SUFFIXES):
        scan = read_neuro(uri)
    else:
        scan = read_nifti(uri, num_channels)
    assert scan.affine is not None
    check_affine(scan.affine)
    return scan.with_(spacing_mm=spacing_of(scan.affine))


def _stack(channels: list[Scan]) -> Scan:
    """Join the channels of a study, which must lie on one grid."""
    first = channels[0]
    assert first.affine is not None
    for channel in channels[1:]:
        assert channel.affine is not None
        if channel.size != first.size or not np.allclose(channel.affine, first.affine, atol=1e-2):
            raise BadStudy(
                f"channels of shapes {first.size} and {channel.size} or of different affines",
                "channels on one grid",
                "resample them onto the first channel",
            )
    same_scale = all((channel.scale, channel.offset) == (first.scale, first.offset) for channel in channels)
    arrays = [c.voxels if same_scale else c.voxels * np.float32(c.scale) + np.float32(c.offset) for c in channels]
    voxels = np.concatenate(arrays)
    return first.with_(voxels=voxels) if same_scale else first.with_(voxels=voxels, scale=1.0, offset=0.0)


def content_digest(scan: Scan) -> str:
    """Return the sha256 of a scan's shape and float32 intensities: equal for copies in two files or two types.

    Geometry is left out: the same voxels under another origin are the same scan.
    """
    digest = hashlib.sha256(repr(scan.voxels.shape).encode())
    for plane in scan.voxels.reshape(-1, *scan.voxels.shape[-2:]):
        values = plane.astype(np.float32) * np.float32(scan.scale) + np.float32(scan.offset)
        digest.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
    return digest.hexdigest()
