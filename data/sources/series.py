"""Layout ``dicom``: series by SeriesInstanceUID over a whole tree, whatever its folders and names.

A series is one patient's, of one modality and one geometry: what an exporter put under one UID is taken apart.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from pydicom.dataset import FileDataset

from data.dicomfile import FRAME_GROUPS, GEOMETRY, is_dicom, numbers, read_data_set
from data.files import File, StorageError, join, list_tree
from data.quarantine import BadStudy, NoScan
from data.sources.pairing import Pattern, check_pair
from data.sources.study import (
    DICOM_SUFFIXES,
    PICTURE_SUFFIXES,
    PROJECTIONS,
    VOLUME_SUFFIXES,
    SourceOptions,
    Study,
    normal_modality,
    suffix_of,
)

_NAMES = ("Modality", "SeriesInstanceUID", "PatientID")
_TAGS = [
    *_NAMES, *GEOMETRY, *FRAME_GROUPS, "Rows", "Columns", "NumberOfFrames", "ImageType", "SOPClassUID",
    "BurnedInAnnotation", "ConversionType",
]  # fmt: skip
_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SCOUTS = frozenset(("LOCALIZER", "SCOUT", "TOPOGRAM"))
_SCREENS = frozenset(
    (
        "SCREEN SAVE",
        "SCREENSAVE",
        "SCREEN SHOT",
        "SCREENSHOT",
        "SECONDARY CAPTURE",
        "DOSE INFO",
        "DOSE REPORT",
        "PROTOCOL",
    )
)
_PARALLEL, _AXIAL = 0.9, 0.5  # cosines: of planes that are parallel, and of one that a tilted gantry can take
_MOST_PLANES = 3  # a localizer has a few planes in each direction
_SUFFIXES = (*DICOM_SUFFIXES, *(f"{suffix}.gz" for suffix in DICOM_SUFFIXES))
_SCAN = "the slices of a scan"


@dataclass(frozen=True)
class _Geometry:
    """What slices of one grid share; ``frame`` is orientation and pixel spacing, None where a tag is not sound."""

    size: tuple[int, int]
    frame: tuple[float, ...] | None

    def is_like(self, other: "_Geometry") -> bool:
        """Tell whether slices may lie on one grid; what lacks a tag stays with the others, and is named there."""
        if self.frame is None or other.frame is None:
            return True
        return self.size == other.size and np.allclose(self.frame, other.frame, rtol=1e-3, atol=1e-3)

    @property
    def normal(self) -> np.ndarray | None:
        return None if self.frame is None else np.cross(self.frame[:3], self.frame[3:6])


@dataclass(frozen=True)
class _Header:
    modality: str
    uid: str
    patient: str
    geometry: _Geometry
    no_scan: NoScan | None


@dataclass
class _Series:
    modality: str
    patient: str
    folder: str
    geometry: _Geometry
    no_scan: NoScan | None = None
    files: list[str] = field(default_factory=list)


def find_dicom(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per series (per file for X-ray projections); a series without UID is its folder's files.

    With ``modality``, only series of that modality are read, so that SEG, SR and plans beside them are left out.
    ``images`` is matched against the folder of a series. What is no scan (DICOMDIR, localizers, secondary captures,
    images with burned-in text) becomes a study whose ``fault`` is NoScan.
    """
    if options.labels is not None:
        check_pair(options.images, options.labels)
    files = list_tree(source)
    series: dict[str, list[_Series]] = {}
    for file in files:
        _add(series, file, options)
    for parts in series.values():
        _find_localizers(parts)
    paths = {file.path for file in files}
    studies = []
    for key, one in sorted(_named(series).items()):
        wildcards = Pattern(options.images).match(one.folder) if options.images else ()
        if wildcards is None or (options.modality and one.modality not in ("", options.modality)):
            continue
        label = Pattern(options.labels).fill(wildcards) if options.labels else None
        studies.append(_study(key, one, dataset, options, join(source, label) if label and label in paths else None))
    return studies


def _named(series: dict[str, list[_Series]]) -> dict[str, _Series]:
    """Give a name to each of the series that were found under one UID; a single one keeps its UID."""
    return {
        key if number == 1 else f"{key} {number}": one
        for key, parts in series.items()
        for number, one in enumerate(parts, 1)
    }


def _add(series: dict[str, list[_Series]], file: File, options: SourceOptions) -> None:
    folder = PurePosixPath(file.path).parent.as_posix()
    named = file.path.lower().endswith(_SUFFIXES)
    if suffix_of(file.path, (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES)) or not (named or _is_marked(file.uri)):
        return
    header = _header(file, options)
    if header is None:
        series[file.path] = [_Series("", "", folder, _Geometry((0, 0), None), None, [file.uri])]
        return
    alone = header.modality in PROJECTIONS or header.no_scan
    key = file.path if alone else header.uid or f"folder {folder}"
    modality = normal_modality(header.modality)
    parts = series.setdefault(key, [])
    for one in parts:
        if (one.patient, one.modality) == (header.patient, modality) and one.geometry.is_like(header.geometry):
            one.geometry = header.geometry if one.geometry.frame is None else one.geometry
            one.files.append(file.uri)
            return
    parts.append(_Series(modality, header.patient, folder, header.geometry, header.no_scan, [file.uri]))


def _is_marked(uri: str) -> bool:
    """Tell whether a file begins as DICOM, or cannot be read and so becomes a bad study."""
    try:
        return is_dicom(uri)
    except OSError:  # its message holds the path
        return True


def _header(file: File, options: SourceOptions) -> _Header | None:
    """Return what is grouped by in a file; None where it has no DICOM header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote tags
        try:
            data = read_data_set(file.uri, stop_before_pixels=True, specific_tags=_TAGS)
            modality, uid, patient = (str(data.get(tag) or "") for tag in _NAMES)
            return _Header(modality, uid, patient, _geometry(data), _no_scan(data, options))
        except StorageError:
            raise
        except Exception:  # noqa: BLE001 (a damaged file may raise anything; its reader says what)
            return None


def _geometry(data: FileDataset) -> _Geometry:
    size = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
    try:
        orientation, spacing = numbers(data, "ImageOrientationPatient"), numbers(data, "PixelSpacing")
    except BadStudy:  # its reader names the tag
        return _Geometry(size, None)
    return _Geometry(size, (*orientation, *spacing) if len(orientation) == 6 and len(spacing) == 2 else None)


def _no_scan(data: FileDataset, options: SourceOptions) -> NoScan | None:
    """Return why a file is no scan to learn from, or None."""
    kind = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind == _DIRECTORY:
        return NoScan("a DICOMDIR", _SCAN, "nothing is to be done: it lists files, which are read themselves")
    words = _words(data)
    if words & _SCOUTS:
        return _localizer("ImageType LOCALIZER")
    if words & _SCREENS:
        return NoScan("a secondary capture (ImageType)", _SCAN, "nothing is to be done: it shows a screen or numbers")
    if (sign := _capture(data, kind)) and not options.secondary_captures:
        return NoScan(
            f"a secondary capture ({sign})",
            _SCAN,
            "where scans are stored as secondary captures, look for names in their pixels, and give "
            "--secondary-captures",
        )
    if str(data.get("BurnedInAnnotation") or "").upper() == "YES":
        return NoScan(
            "an image with burned-in text (BurnedInAnnotation YES)",
            "pixels without names",
            "blank the text, and set BurnedInAnnotation to NO",
        )
    return None


def _localizer(sign: str) -> NoScan:
    return NoScan(f"a localizer ({sign})", _SCAN, "nothing is to be done: it only plans a scan")


def _words(data: FileDataset) -> set[str]:
    """Return the words of ImageType, in upper case and without underscores."""
    given = data.get("ImageType") or ()
    return {str(word).upper().replace("_", " ").strip() for word in ((given,) if isinstance(given, str) else given)}


def _capture(data: FileDataset, kind: str) -> str:
    """Return by which tag a file is a picture of a screen or of a sheet of numbers; empty where it is none."""
    if kind == _SECONDARY_CAPTURE or kind.startswith(f"{_SECONDARY_CAPTURE}."):
        return "SOPClassUID"
    is_flat = not data.get("ImagePositionPatient") and str(data.get("Modality") or "") not in PROJECTIONS
    return "ConversionType, and no position" if is_flat and data.get("ConversionType") else ""


def _find_localizers(parts: list[_Series]) -> None:
    """Mark the localizers among the series under one UID that ImageType does not name.

    They are few planes of a patient in several directions, or a single CT image that is not axial.
    """
    few = [one for one in parts if one.no_scan is None and len(one.files) <= _MOST_PLANES]
    for one in few:
        normal = one.geometry.normal
        others = [other for other in parts if (other.patient, other.modality) == (one.patient, one.modality)]
        if normal is None or any(other not in few or other.geometry.normal is None for other in others):
            continue
        if min(abs(normal @ other.geometry.normal) for other in others) < _PARALLEL:
            one.no_scan = _localizer("a few planes that are not parallel")
        elif one.modality == "CT" and len(one.files) == 1 and abs(normal[2]) < _AXIAL:
            one.no_scan = _localizer("a single CT image that is not axial")


def _study(key: str, series: _Series, dataset: str, options: SourceOptions, label: str | None) -> Study:
    patient = series.patient
    if options.patient_pattern or not patient:
        patient = options.patient(series.folder if options.patient_pattern else key, dataset)
    return Study(
        key=key,
        kind="dicom",
        image=tuple(sorted(series.files)),
        patient=patient,
        dataset=dataset,
        label=label,
        modality=options.modality,
        rescale=options.rescale,
        fault=series.no_scan,
    )
