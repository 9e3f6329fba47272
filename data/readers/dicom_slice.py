"""DicomSlice: the data kept from one DICOM file. Everything else in it, names and dates included, is dropped here."""

import re
import struct
import tempfile
import warnings
import zlib
from dataclasses import dataclass

import gdcm
import numpy as np
from jaxtyping import Bool, Float64, Integer
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    UID_dictionary,
)

from data.dicomfile import GEOMETRY, numbers, read_data_set
from data.files import open_file
from data.quarantine import BadStudy, damaged, foreign, told, undecoded
from data.readers.gzipped import peek
from data.readers.jpeg_frame import check_frame
from data.sources.study import PROJECTIONS, normal_modality

_NO_IMAGES = (
    "ANN", "AU", "DOC", "ECG", "EPS", "FID", "KO", "M3D", "PLAN", "PR", "REG", "RTDOSE", "RTIMAGE", "RTPLAN",
    "RTRECORD", "RTSTRUCT", "RWV", "SEG", "SMR", "SR", "STAIN",
)  # fmt: skip
# Allowed values of these two tags; messages repeat no other value, as it could be anything, even a name.
_IMAGES = frozenset((
    "BDUS", "BI", "BMD", "CFM", "CR", "CT", "DG", "DMS", "DX", "ES", "GM", "IO", "IVOCT", "IVUS", "LS", "MG", "MR",
    "NM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OSS", "OT", "PA", "PT", "PX", "RF", "RG", "SM", "TG", "US",
    "XA", "XC", "XR",
))  # fmt: skip
_COLOURS = frozenset((
    "ARGB", "CMYK", "HSV", "PALETTE COLOR", "RGB", "XYB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_PARTIAL_420",
    "YBR_PARTIAL_422", "YBR_RCT",
))  # fmt: skip
_DAMAGE = (
    ArithmeticError, AttributeError, BytesLengthException, EOFError, LookupError, NotImplementedError, OSError,
    RuntimeError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
_NEEDED = ("PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
_STORAGE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.[124](\.[\d.]+)?")  # X-rays, CT, MR
_REMOVE = "remove the series from the source"
_REMEDIES = {
    "pixel data": _REMOVE,
    "mosaic": "convert it to NIfTI, or remove it from the source",
    "look-up": "apply the table, or remove the series from the source",
    "frames": "split it into a file for each frame",
    "colour": "convert it to grey, or remove it from the source",
    "in BitsAllocated": "correct the tag",
    "of grey pixels": "correct the tag",
    "RescaleSlope 0": "correct the tag",
    "above 0": "correct the tag",
    "no ": "add the tag where its value is known, or remove the series from the source",
}
_PLAIN = "a transfer syntax without compression, JPEG, JPEG-LS, JPEG 2000 or RLE"

# GDCM ends the whole process on some damaged JPEG 2000 streams; Pillow raises.
_BY_PILLOW = (JPEGBaseline8Bit, JPEG2000Lossless, JPEG2000)

gdcm.Trace.WarningOff()  # its warnings and errors print values of tags
gdcm.Trace.ErrorOff()


@dataclass(frozen=True)
class DicomSlice:
    """One slice: pixels (H, W) as stored, intensity = pixel * slope + intercept, geometry in LPS mm.

    ``position``, ``along_w`` and ``along_h`` (unit vectors), ``spacing_mm`` (H, W) are None for projections.
    ``padding`` tells which pixels are none of the image's, or is None where the file names no padding value.
    ``bits_stored`` are those that the file says its pixels have.
    ``is_rescaled`` tells whether slope and intercept are the file's, not 1 and 0 for want of them.
    """

    pixels: Integer[np.ndarray, "H W"]
    modality: str
    slope: float
    intercept: float
    position: Float64[np.ndarray, "3"] | None
    along_w: Float64[np.ndarray, "3"] | None
    along_h: Float64[np.ndarray, "3"] | None
    spacing_mm: tuple[float, float] | None
    thickness_mm: float | None
    padding: Bool[np.ndarray, "H W"] | None
    bits_stored: int
    is_rescaled: bool


def read_slice(uri: str) -> DicomSlice:
    """Read one file; raise BadStudy, naming all faults, if it is not a single grey image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote tags
        try:
            data = read_data_set(uri)
            _check_kind(data)
            return _slice(data)
        except BadStudy:
            raise
        except InvalidDicomError:
            with open_file(uri) as file:
                head = peek(file)
            raise foreign(head, "a DICOM file") or damaged(
                "no DICOM header ('DICM' mark missing)", "a DICOM file"
            ) from None
        except _DAMAGE as error:
            raise damaged(f"a DICOM file that cannot be decoded ({told(error, (uri,))})") from None


def _check_kind(data: FileDataset) -> None:
    modality = str(data.get("Modality") or "")
    if modality in _NO_IMAGES:
        raise BadStudy(
            f"DICOM of modality {modality}, not an image series",
            "an image series",
            "set option modality (CT, MR, ...): then only series of this modality are read",
        )
    if not any(tag in data for tag in ("PixelData", "Rows", "Columns", "ImagePositionPatient")) and _is_image(data):
        raise damaged("a DICOM file that ends within its header")
    faults = [*_pixel_faults(data), *_geometry_faults(data, modality)]
    if faults:
        remedies = dict.fromkeys(
            next((do for word, do in _REMEDIES.items() if word in one), _REMOVE) for one in faults
        )
        raise BadStudy("; ".join(faults), "single-frame grey slices with a position", "; ".join(remedies))
    _check_decoder(data.file_meta.TransferSyntaxUID)
    _check_length(data)


def _is_image(data: FileDataset) -> bool:
    kind = str(data.file_meta.get("MediaStorageSOPClassUID") or data.get("SOPClassUID") or "")
    return _STORAGE.fullmatch(kind) is not None


def _pixel_faults(data: FileDataset) -> list[str]:
    faults = []
    if "MOSAIC" in (data.get("ImageType") or []):
        faults.append("a mosaic of slices in one frame")
    if "PixelData" not in data or not data.get("Rows") or not data.get("Columns"):
        return [*faults, "no pixel data"]
    if int(data.get("NumberOfFrames") or 1) != 1:
        faults.append(f"{int(data.NumberOfFrames)} frames in one file (multi-frame)")
    faults += [f"no {name}" for name in _NEEDED if data.get(name) in (None, "")]
    faults += _bit_faults(data)
    colours = str(data.get("PhotometricInterpretation") or "")
    if colours and not colours.startswith("MONOCHROME"):
        faults.append(f"{colours if colours in _COLOURS else 'undefined'} colour pixels")
    elif (samples := numbers(data, "SamplesPerPixel")) and samples != (1,):
        faults.append(f"SamplesPerPixel {samples[0]:g} of grey pixels")  # GDCM ends the process of some such files
    for tag in ("RescaleSlope", "RescaleIntercept", "SliceThickness"):
        numbers(data, tag)
    if 0 in numbers(data, "RescaleSlope"):
        faults.append("RescaleSlope 0")
    if "ModalityLUTSequence" in data:
        faults.append("a modality look-up table instead of slope and intercept")
    return faults


def _bit_faults(data: FileDataset) -> list[str]:
    allocated, stored = (numbers(data, name) for name in ("BitsAllocated", "BitsStored"))
    if not allocated or not stored or (allocated[0] in (8, 16, 32, 64) and 0 < stored[0] <= allocated[0]):
        return []
    return [f"BitsStored {stored[0]:g} in BitsAllocated {allocated[0]:g}"]


def _geometry_faults(data: FileDataset, modality: str) -> list[str]:
    if modality in PROJECTIONS:
        return []
    values = {name: numbers(data, name) for name in GEOMETRY}
    missing = [f"no {name}" for name, count in GEOMETRY.items() if len(values[name]) != count]
    flat = ["PixelSpacing that is not above 0"] if any(value <= 0 for value in values["PixelSpacing"]) else []
    return missing + flat


def _check_length(data: FileDataset) -> None:
    """Raise BadStudy for a truncated file; truncated compressed files fail in their decoder."""
    if not data.file_meta.TransferSyntaxUID.is_compressed:
        needed = data.Rows * data.Columns * data.BitsAllocated // 8
        if len(data.PixelData) < needed:
            raise damaged(
                f"{len(data.PixelData)} bytes of pixel data (truncated)",
                f"{needed} bytes for {data.Rows} x {data.Columns}",
            )


def _pixels(data: FileDataset) -> Integer[np.ndarray, "H W"]:
    syntax = data.file_meta.TransferSyntaxUID
    if syntax in _BY_PILLOW:
        data.pixel_array_options(decoding_plugin="pillow")
    elif syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        stream = next(generate_frames(data.PixelData, number_of_frames=1))
        precision = check_frame(stream, data.Rows, data.Columns, data.BitsAllocated)
        if syntax == JPEGExtended12Bit and precision > 8:
            return _extended(data)
    return np.asarray(data.pixel_array)


def _check_decoder(syntax: str) -> None:
    """Raise BadStudy for a transfer syntax that nothing here decodes, by its name if DICOM knows it."""
    try:
        known = get_decoder(UID(syntax)).is_available
    except NotImplementedError:
        known = False
    if not known:
        name = f"transfer syntax {syntax} ({UID_dictionary[syntax][0]})" if syntax in UID_dictionary else ""
        raise undecoded(
            name or "a transfer syntax that DICOM does not define",
            _PLAIN,
            "convert the series to Explicit VR Little Endian with a tool that decodes it",
        )


def _extended(data: FileDataset) -> Integer[np.ndarray, "H W"]:
    """Decode 12-bit JPEG Extended by GDCM itself; pydicom refuses to hand it over."""
    with tempfile.NamedTemporaryFile(prefix="raydiology-", suffix=".dcm") as copy:
        data.save_as(copy.name)
        reader = gdcm.ImageReader()
        reader.SetFileName(copy.name)
        if not reader.Read():
            raise damaged("a JPEG Extended stream that GDCM cannot decode")
        content = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    if len(content) != 2 * data.Rows * data.Columns:
        raise damaged(f"{len(content)} bytes of decoded pixels", f"{2 * data.Rows * data.Columns} bytes")
    pixels = np.frombuffer(content, "<u2").reshape(data.Rows, data.Columns)
    if not data.PixelRepresentation:
        return pixels
    unused = 16 - int(data.BitsStored)
    return (pixels << unused).astype(np.int16) >> unused


def _padding(data: FileDataset, pixels: Integer[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"] | None:
    """Return which pixels have the padding value, or one up to the padding's limit; signs are often written wrong."""
    if (value := data.get("PixelPaddingValue")) is None:
        return None
    limit = data.get("PixelPaddingRangeLimit")
    ends = [_stored(end, data) for end in (value, value if limit is None else limit)]
    padding = (pixels >= min(ends)) & (pixels <= max(ends))
    return padding if padding.any() else None


def _stored(value: int | bytes, data: FileDataset) -> int:
    """Return a value as the file's pixels hold it: 63536 is -2000 where they are signed, and the reverse."""
    bits = int(data.BitsAllocated)
    number = int.from_bytes(value[: bits // 8], "little") if isinstance(value, bytes) else int(value)
    number %= 1 << bits
    return number - (1 << bits) if data.PixelRepresentation and number >> (bits - 1) else number


def _slice(data: FileDataset) -> DicomSlice:
    modality = str(data.get("Modality") or "")
    pixels = _pixels(data)
    padding = _padding(data, pixels)
    projection = modality in PROJECTIONS
    if projection and data.PhotometricInterpretation == "MONOCHROME1":
        top = pixels.max() if padding is None or padding.all() else pixels[~padding].max()
        pixels = top - pixels  # MONOCHROME1 shows low values bright; bones must be bright in all
    directions = None if projection else np.array(data.ImageOrientationPatient, dtype=np.float64)
    slope, intercept = numbers(data, "RescaleSlope"), numbers(data, "RescaleIntercept")
    return DicomSlice(
        pixels=pixels,
        modality=kind if (kind := normal_modality(modality)) in _IMAGES else "",
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        position=None if projection else np.array(data.ImagePositionPatient, dtype=np.float64),
        along_w=None if directions is None else directions[:3],
        along_h=None if directions is None else directions[3:],
        spacing_mm=None if projection else (float(data.PixelSpacing[0]), float(data.PixelSpacing[1])),
        thickness_mm=next(iter(numbers(data, "SliceThickness")), 0.0) or None,
        padding=padding,
        bits_stored=int(data.BitsStored),
        is_rescaled=bool(slope and intercept),
    )
