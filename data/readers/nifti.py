"""NIfTI-1 and NIfTI-2, single files and pairs: checked beyond nibabel, which reads several damaged files silently.

Checked only here: the gzip stream to its end, the header's sizes against the datatype and the file's length, the
voxels' place in the file, units, and that qform and sform agree.
"""

from dataclasses import dataclass
from math import isfinite

import nibabel as nib
import numpy as np
from jaxtyping import Float64
from nibabel.nifti1 import Nifti1Header

from data.files import is_file, read_bytes
from data.quarantine import (
    CONVERT_AGAIN,
    COPY_AGAIN,
    CORRECT_HEADER,
    GIVE_PICTURE,
    SPLIT_VOLUMES,
    BadStudy,
    damaged,
    foreign,
)
from data.readers.gzipped import inflate
from data.scan import Scan, is_sheared, spacing_of

_HEADERS = {348: (nib.Nifti1Header, (b"n+1", b"ni1")), 540: (nib.Nifti2Header, (b"n+2", b"ni2"))}
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"
}  # fmt: skip
_COLOUR = {128: "RGB", 2304: "RGBA"}
_COMPLEX = {32: "complex64", 1792: "complex128", 2048: "complex256"}
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class _Layout:
    """Where and how voxels lie in the file: shape is (x, y, z, ...) with x fastest."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


def read_nifti(uri: str, num_channels: int = 1) -> Scan:
    """Read a NIfTI file to (C, D, H, W) in the order of the file, with the affine of (d, h, w) in RAS+ mm.

    A last axis of ``num_channels`` is taken as channels. Raises BadStudy for a file that cannot become a volume.
    """
    content = inflate(read_bytes(uri))
    header, single = parse_header(content)
    layout = _check_layout(header, single)
    data = content if single else inflate(_read_pair(uri))
    voxels = _voxels(data, layout, num_channels)
    affine = header_affine(header)
    slope, offset = _rescale(header)
    if voxels.dtype.kind == "f" and (slope, offset) != (1.0, 0.0):
        voxels, slope, offset = voxels * np.float32(slope) + np.float32(offset), 1.0, 0.0
    return Scan(voxels, spacing_of(affine), "", affine, scale=slope, offset=offset)


def parse_header(content: bytes) -> tuple[Nifti1Header, bool]:
    """Return the header (NIfTI-2 headers are a kind of it) and whether the voxels follow in the same file."""
    if len(content) < 348:
        raise foreign(content, "a NIfTI file") or damaged(
            f"{len(content)} bytes", "a NIfTI header of 348 or 540 bytes"
        )
    for order in ("little", "big"):
        size = int.from_bytes(content[:4], order)
        if size in _HEADERS:
            kind, magics = _HEADERS[size]
            if len(content) < size:
                break
            header = kind(content[:size], "<" if order == "little" else ">", check=False)
            return header, _is_single(bytes(header["magic"]), magics)
    raise foreign(content, "a NIfTI file") or BadStudy(
        "no NIfTI header (its first word is neither 348 nor 540)",
        "a header that begins with its own size",
        "remove the file from the source, or give it the suffix of its true format",
    )


def _is_single(magic: bytes, magics: tuple[bytes, bytes]) -> bool:
    word = magic[:3]
    if word not in magics:
        raise BadStudy(
            f"the magic word 0x{word.hex()} in a header of NIfTI's size",
            f"one of {', '.join(word.decode() for word in magics)} (Analyze files hold no orientation)",
            CONVERT_AGAIN,
        )
    return word == magics[0]


def _check_layout(header: Nifti1Header, single: bool) -> _Layout:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code in _COLOUR or code in _COMPLEX:
        kind = _COLOUR.get(code) or _COMPLEX[code]
        raise BadStudy(f"{kind} voxels", "one real intensity per voxel", "convert to grey values or to a magnitude")
    if code not in _TYPES:
        raise BadStudy(f"datatype code {code}", "a code that NIfTI defines", CONVERT_AGAIN)
    dtype = np.dtype(_TYPES[code]).newbyteorder(header.endianness)
    if bits != 8 * dtype.itemsize:
        raise BadStudy(f"bitpix {bits} beside datatype {dtype.name}", f"bitpix {8 * dtype.itemsize}", CORRECT_HEADER)
    intent = int(header["intent_code"])
    if 3000 <= intent < 3100:
        raise BadStudy(f"CIFTI-2 data (intent {intent})", "a volume", "remove the file from the source")
    offset, least = float(header["vox_offset"]), int(header["sizeof_hdr"]) + 4 if single else 0
    if not isfinite(offset) or offset < least:
        where = "inside the header" if offset < least else "no place in a file"
        raise BadStudy(f"vox_offset {offset:g}, {where}", f"{least} or more", CORRECT_HEADER)
    return _Layout(dtype, _shape(header), int(offset))


def _shape(header: Nifti1Header) -> tuple[int, ...]:
    num_axes = int(header["dim"][0])
    if not 1 <= num_axes <= 7:
        raise BadStudy(f"{num_axes} axes (dim[0])", "1 to 7", CONVERT_AGAIN)
    shape = tuple(int(size) for size in header["dim"][1 : num_axes + 1])
    if min(shape) < 1:
        raise BadStudy(f"axes of {shape} voxels", "at least 1 voxel along each", CONVERT_AGAIN)
    return shape


def _read_pair(uri: str) -> bytes:
    stem, suffix = uri.rsplit(".", 1)
    image = f"{stem}.{'IMG' if suffix.isupper() else 'img'}"
    for candidate in (image, f"{image}.gz"):
        if is_file(candidate):
            return read_bytes(candidate)
    raise BadStudy("a header (.hdr) without its voxels (.img)", "both files of the pair", "add the .img file")


def _voxels(content: bytes, layout: _Layout, num_channels: int) -> np.ndarray:
    shape = layout.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    channelled = num_channels > 1 and len(shape) == 4 and shape[3] == num_channels
    if len(shape) != 3 and not channelled:
        raise BadStudy(
            f"{len(shape)} axes of {shape} voxels",
            "3 axes (x, y, z)" if num_channels == 1 else f"3 axes and {num_channels} channels",
            GIVE_PICTURE if len(shape) < 3 else SPLIT_VOLUMES,
        )
    count = int(np.prod(shape, dtype=object))
    needed, have = count * layout.dtype.itemsize, len(content) - layout.offset
    if have < needed:
        raise BadStudy(
            f"{max(have, 0)} bytes of voxels", f"{needed} bytes for {shape} {layout.dtype.name}", COPY_AGAIN
        )
    # A few bytes of padding are harmless. A whole plane more means that the header does not belong to these voxels.
    if have - needed >= needed // max(shape):
        raise BadStudy(
            f"{have} bytes of voxels, {have - needed} more than its header tells of",
            f"{needed} bytes for {shape} {layout.dtype.name}",
            CONVERT_AGAIN,
        )
    flat = np.frombuffer(content, layout.dtype, count, layout.offset)
    grid = flat.reshape(shape[::-1] if channelled else (1, *shape[::-1]))
    return _native(grid)


def _native(voxels: np.ndarray) -> np.ndarray:
    """Return voxels in this machine's byte order; 64-bit types become float32 (no scanner needs more)."""
    if voxels.dtype.itemsize == 8:
        return voxels.astype(np.float32)
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)


def header_affine(header: Nifti1Header) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of (d, h, w) in RAS+ mm, from sform or else qform."""
    codes = int(header["sform_code"]), int(header["qform_code"])
    if codes == (0, 0):
        raise BadStudy(
            "no orientation (qform_code and sform_code are 0)",
            "a qform or an sform: without it left and right are unknown",
            "convert the study again from DICOM, or set the sform if it is known",
        )
    if codes[1] and min(header["pixdim"][1:4].tolist()) <= 0:
        raise BadStudy(f"pixdim {header['pixdim'][1:4].tolist()}", "sizes above 0", CORRECT_HEADER)
    affine = np.asarray(header.get_sform() if codes[0] else _qform(header), dtype=np.float64)
    if all(codes):
        _check_agreement(affine, _qform(header), _shape(header), same_space=codes[0] == codes[1])
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        raise BadStudy(f"spatial unit {unit}", "metres, millimetres or micrometres (1 to 3)", "correct xyzt_units")
    affine[:3] *= _MM_PER_UNIT[unit]
    return affine[:, [2, 1, 0, 3]]


def _qform(header: Nifti1Header) -> np.ndarray:
    """Return the qform's affine; NIfTI-1 counts every pixdim[0] but a negative one as 1, also 0, nibabel none."""
    counted = header.copy()
    counted["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    try:
        return np.asarray(counted.get_qform(), dtype=np.float64)
    except ValueError:
        raise BadStudy(
            "a quaternion that is not a rotation (longer than 1)", "a unit quaternion", "correct it"
        ) from None


def _check_agreement(sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...], same_space: bool) -> None:
    """Refuse headers whose two affines cannot both be right.

    They may describe two spaces (scanner and template), which then differ by a shift or a turn, not in the voxels'
    size. A qform cannot hold a shear, so a sheared sform is not compared.
    """
    if not np.isfinite(sform).all() or is_sheared(sform):
        return
    sizes = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (sform, qform)]
    corner = np.array([*(size - 1 for size in (*shape, 1, 1)[:3]), 1])
    apart = np.abs((sform - qform) @ corner).max() if same_space else 0.0
    if not np.allclose(sizes[0], sizes[1], rtol=0.02) or apart > max(sizes[0]):
        texts = [" x ".join(f"{size:.4g}" for size in size_mm) for size_mm in sizes]
        raise BadStudy(
            f"sform and qform that disagree: voxels of {texts[0]} and of {texts[1]} mm"
            + (f", far corners {apart:.3g} mm apart" if same_space else ""),
            "one geometry",
            "set the wrong one's code to 0",
        )


def _rescale(header: Nifti1Header) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0 or NaN means none, as in the standard and in common writers."""
    slope, offset = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite([slope, offset]).all():
        raise BadStudy(f"scl_slope {slope} with scl_inter {offset}", "finite numbers", CORRECT_HEADER)
    return slope, offset
