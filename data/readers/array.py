"""One image of an array in an .npz file (MedMNIST), as (C, H, W) with intensities in [0, 1]."""

import zipfile
from functools import lru_cache

import numpy as np

from data.files import open_file
from data.quarantine import BadStudy, damaged
from data.scan import Scan

_KEPT_ARRAYS = 3


def read_array_image(uri: str, name: str, index: int) -> Scan:
    """Read image ``index`` of the array ``name``: (n, H, W) grey or (n, H, W, 3) in colour, uint8."""
    try:
        array = _array(uri, name)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise damaged("a damaged .npz file", "a whole one") from None
    if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)):
        raise BadStudy(
            f"images of shape {array.shape[1:]}, {array.dtype}", "(H, W) or (H, W, 3) of uint8", "convert the array"
        )
    image = array[index]
    voxels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return Scan(np.ascontiguousarray(voxels), (1.0, 1.0), "", scale=1 / 255)


@lru_cache(maxsize=_KEPT_ARRAYS)
def _array(uri: str, name: str) -> np.ndarray:
    """Read a whole array: it is compressed as a whole, and the next image comes from it too."""
    with open_file(uri) as file, np.load(file, allow_pickle=False) as arrays:
        return arrays[name]
