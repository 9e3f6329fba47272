"""FreeSurfer MGH and MINC-1 volumes, by nibabel."""

import struct

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from data.files import local_path, read_bytes
from data.quarantine import SPLIT_VOLUMES, BadStudy, damaged, foreign
from data.readers.gzipped import inflate
from data.scan import Scan, spacing_of

_DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, HeaderDataError, ImageFileError, LookupError, OSError, TypeError,
    ValueError, struct.error,
)  # fmt: skip


def read_neuro(uri: str) -> Scan:
    """Read an MGH, MGZ or MINC file to (1, D, H, W) with the affine of (d, h, w) in RAS+ mm."""
    if (other := foreign(inflate(read_bytes(uri))[:4096], "an MGH or MINC-1 file")) is not None:
        raise other
    with local_path(uri) as path:
        try:
            image = nib.load(path)
            shape = tuple(int(size) for size in image.shape)  # pyright: ignore[reportAttributeAccessIssue]  # volumes have one
            _check_shape(shape)
            values = np.asarray(image.dataobj, dtype=np.float32)  # pyright: ignore[reportAttributeAccessIssue]
            affine = np.asarray(image.affine, dtype=np.float64)  # pyright: ignore[reportAttributeAccessIssue]
        except BadStudy:
            raise
        except _DAMAGE as error:
            raise damaged(
                f"a file that nibabel cannot read ({type(error).__name__})", "a whole MGH or MINC-1 file"
            ) from None
    affine = affine[:, [2, 1, 0, 3]]
    return Scan(values.reshape(shape[:3]).transpose()[None], spacing_of(affine), "", affine)


def _check_shape(shape: tuple[int, ...]) -> None:
    if len([size for size in shape[3:] if size != 1]) or len(shape) < 3:
        raise BadStudy(f"{len(shape)} axes of {shape} voxels", "3 axes", SPLIT_VOLUMES)
