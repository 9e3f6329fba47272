"""Pictures (JPEG, PNG, TIFF, BMP) by Pillow, as (C, H, W) with intensities in [0, 1]."""

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.files import open_file
from data.quarantine import BadStudy
from data.scan import Scan

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I")
_GREY = ("1", "L", "LA")
_AGAIN = "copy the file again from its source"


def read_picture(uri: str) -> Scan:
    """Read a picture to (1, H, W) or (3, H, W); colours stay colours, transparency is dropped.

    A picture has no geometry: its affine is None and its spacing is 1 pixel. The camera's orientation tag is obeyed.
    """
    try:
        with open_file(uri) as file, Image.open(file) as image:
            _check_frames(image)
            pixels = _pixels(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadStudy(
            "no picture that Pillow can read",
            "a JPEG, PNG, TIFF or BMP file",
            "convert it, or remove it from the source",
        ) from None
    except Image.DecompressionBombError:
        raise BadStudy(
            f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels", "a picture of usual size", "tile it"
        ) from None
    except (OSError, SyntaxError, EOFError):
        raise BadStudy("a damaged or truncated picture", "a whole one", _AGAIN) from None
    scale = 1.0 / np.iinfo(pixels.dtype).max
    return Scan(pixels, (1.0, 1.0), "", scale=scale)


def _check_frames(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise BadStudy(f"{frames} frames in one file", "one picture", "split the file")


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise BadStudy(f"grey values from {values.min()} to {values.max()}", "0 to 65535", "convert to 16 bit")
        return np.ascontiguousarray(values, dtype=np.uint16)[None]
    if image.mode == "F":
        raise BadStudy("a picture of floating-point values", "8 or 16 bit", "convert to 16 bit")
    if image.mode in _GREY:
        return np.array(image.convert("L"))[None]
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
