"""Pictures (JPEG, PNG, TIFF, BMP) by Pillow, as (C, H, W) with intensities in [0, 1]."""

import struct
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from data.files import read_bytes
from data.quarantine import BadStudy, damaged, foreign
from data.scan import Scan

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I")
_GREY = ("1", "L", "LA")
_PICTURE = "a JPEG, PNG, TIFF or BMP file"
_WHITE_IS_ZERO = 0
_ORIENTATION = 0x0112  # of EXIF, which tells how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def read_picture(uri: str) -> Scan:
    """Read a picture to (1, H, W) or (3, H, W); colours stay colours, transparency is dropped.

    A picture has no geometry: its affine is None and its spacing is 1 pixel. The camera's orientation tag is obeyed.
    """
    content = read_bytes(uri)  # Pillow asks more of a file, such as its lines, than Arrow's have
    try:
        with Image.open(BytesIO(content)) as image:
            _check_frames(image)
            pixels = _pixels(image)
    except UnidentifiedImageError:
        if content.startswith((b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"BM")):
            raise damaged("a picture whose header Pillow cannot read", f"{_PICTURE}, whole") from None
        raise foreign(content[:4096], _PICTURE) or BadStudy(
            "no picture that Pillow can read", _PICTURE, "convert it, or remove it from the source"
        ) from None
    except Image.DecompressionBombError:
        raise BadStudy(
            f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels", "a picture of usual size", "tile it"
        ) from None
    except (OSError, SyntaxError, EOFError):
        raise damaged("a damaged or truncated picture", "a whole one") from None
    return Scan(pixels, (1.0, 1.0), "", scale=1.0 / np.iinfo(pixels.dtype).max)


def _check_frames(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise BadStudy(f"{frames} frames in one file", "one picture", "split the file")


def check_not_turned(uri: str) -> None:
    """Raise BadStudy for a picture that its orientation tag turns: boxes may be drawn on it as stored, or turned."""
    with Image.open(BytesIO(read_bytes(uri))) as image:
        if _turn(image) is not None:
            raise BadStudy(
                "a picture with boxes and an orientation tag that turns it",
                "a picture as its boxes were drawn on it",
                "save it upright without the tag, and check the boxes",
            )


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError, OSError, struct.error):
        return None  # a broken block of tags says nothing of the pixels, which are sound


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its orientation tag says; without copying the tags, some of which cannot be written again."""
    image.load()
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(_upright(image))
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise BadStudy(f"grey values from {values.min()} to {values.max()}", "0 to 65535", "convert to 16 bit")
        return np.ascontiguousarray(_black_is_zero(values.astype(np.uint16), image))[None]
    if image.mode == "F":
        raise BadStudy("a picture of floating-point values", "8 or 16 bit", "convert to 16 bit")
    upright = _upright(image)
    if image.mode in _GREY:
        return np.array(upright.convert("L"))[None]
    return np.ascontiguousarray(np.asarray(upright.convert("RGB")).transpose(2, 0, 1))


def _black_is_zero(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Invert the grey values of a TIFF file in which 0 is white; Pillow does so for up to 8 bit only."""
    if not isinstance(image, TiffImageFile) or image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) != _WHITE_IS_ZERO:
        return values
    white = (1 << int(image.tag_v2.get(BITSPERSAMPLE, (16,))[0])) - 1
    return np.clip(white - values.astype(np.int64), 0, None).astype(np.uint16)
