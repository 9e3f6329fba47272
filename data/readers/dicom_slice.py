"""DicomSlice: the data kept from one DICOM file. Everything else in it, names and dates included, is dropped here."""

import struct
import warnings
import zlib
from dataclasses import dataclass

import gdcm
import numpy as np
from jaxtyping import Float64, Integer
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from data.files import open_file
from data.quarantine import BadStudy
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
_EXPORT_AGAIN = "export the series again"

# GDCM ends the whole process on some damaged JPEG 2000 streams; Pillow raises.
_BY_PILLOW = (JPEGBaseline8Bit, JPEG2000Lossless, JPEG2000)

gdcm.Trace.WarningOff()  # its warnings and errors print values of tags
gdcm.Trace.ErrorOff()


@dataclass(frozen=True)
class DicomSlice:
    """One slice: pixels (H, W) as stored, intensity = pixel * slope + intercept, geometry in LPS mm.

    ``position``, ``along_w`` and ``along_h`` (unit vectors), ``spacing_mm`` (H, W) are None for projections.
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


def read_slice(uri: str) -> DicomSlice:
    """Read one file; raise BadStudy, naming all faults, if it is not a single grey image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote tags
        try:
            with open_file(uri) as file:
                data = dcmread(file)
            _check_kind(data)
            return _slice(data)
        except BadStudy:
            raise
        except InvalidDicomError:
            raise BadStudy("no DICOM header ('DICM' mark missing)", "a DICOM file", _EXPORT_AGAIN) from None
        except _DAMAGE as error:
            raise BadStudy(
                f"a DICOM file that cannot be decoded ({type(error).__name__})", "a whole file", _EXPORT_AGAIN
            ) from None


def _check_kind(data: FileDataset) -> None:
    modality = str(data.get("Modality") or "")
    if modality in _NO_IMAGES:
        raise BadStudy(
            f"DICOM of modality {modality}, not an image series",
            "an image series",
            "set option modality (CT, MR, ...): then only series of this modality are read",
        )
    faults = [*_pixel_faults(data), *_geometry_faults(data, modality)]
    if faults:
        raise BadStudy(
            "; ".join(faults), "single-frame grey slices with a position", "remove the series from the source"
        )
    _check_length(data)


def _pixel_faults(data: FileDataset) -> list[str]:
    faults = []
    if "MOSAIC" in (data.get("ImageType") or []):
        faults.append("a mosaic of slices in one frame")
    if "PixelData" not in data or not data.get("Rows") or not data.get("Columns"):
        return [*faults, "no pixel data"]
    if int(data.get("NumberOfFrames") or 1) != 1:
        faults.append(f"{int(data.NumberOfFrames)} frames in one file (multi-frame)")
    colours = str(data.get("PhotometricInterpretation") or "")
    if not colours.startswith("MONOCHROME"):
        faults.append(f"{colours if colours in _COLOURS else 'undefined'} colour pixels")
    if not all(
        np.isfinite(float(data.get(tag) or 0)) for tag in ("RescaleSlope", "RescaleIntercept", "SliceThickness")
    ):
        faults.append("a rescale slope, intercept or thickness that is not finite")
    if "ModalityLUTSequence" in data:
        faults.append("a modality look-up table instead of slope and intercept")
    return faults


def _geometry_faults(data: FileDataset, modality: str) -> list[str]:
    if modality in PROJECTIONS:
        return []
    needed = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    values = {name: data.get(name) or [] for name in needed}
    missing = [f"no {name}" for name, count in needed.items() if len(values[name]) != count]
    odd = [f"{name} that is not finite" for name in needed if not all(np.isfinite(float(v)) for v in values[name])]
    flat = ["PixelSpacing that is not above 0"] if any(float(v) <= 0 for v in values["PixelSpacing"]) else []
    return missing + odd + flat


def _check_length(data: FileDataset) -> None:
    """Raise BadStudy for a truncated file; truncated compressed files fail in their decoder."""
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not syntax.is_compressed:
        needed = data.Rows * data.Columns * data.BitsAllocated // 8
        if len(data.PixelData) < needed:
            raise BadStudy(
                f"{len(data.PixelData)} bytes of pixel data (truncated)",
                f"{needed} bytes for {data.Rows} x {data.Columns}",
                _EXPORT_AGAIN,
            )


def _pixels(data: FileDataset) -> Integer[np.ndarray, "H W"]:
    syntax = data.file_meta.TransferSyntaxUID
    if syntax in _BY_PILLOW:
        data.pixel_array_options(decoding_plugin="pillow")
    elif syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        stream = next(generate_frames(data.PixelData, number_of_frames=1))
        check_frame(stream, data.Rows, data.Columns, data.BitsAllocated)
    return np.asarray(data.pixel_array)


def _slice(data: FileDataset) -> DicomSlice:
    modality = str(data.get("Modality") or "")
    pixels = _pixels(data)
    projection = modality in PROJECTIONS
    if projection and data.PhotometricInterpretation == "MONOCHROME1":
        pixels = pixels.max() - pixels  # MONOCHROME1 shows low values bright; bones must be bright in all
    directions = None if projection else np.array(data.ImageOrientationPatient, dtype=np.float64)
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    return DicomSlice(
        pixels=pixels,
        modality=kind if (kind := normal_modality(modality)) in _IMAGES else "",
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        position=None if projection else np.array(data.ImagePositionPatient, dtype=np.float64),
        along_w=None if directions is None else directions[:3],
        along_h=None if directions is None else directions[3:],
        spacing_mm=None if projection else (float(data.PixelSpacing[0]), float(data.PixelSpacing[1])),
        thickness_mm=float(data.get("SliceThickness") or 0) or None,
    )
