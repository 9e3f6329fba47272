"""Layout ``dicom``: series by SeriesInstanceUID over a whole tree, whatever its folders and names.

A series is one patient's, of one modality and one geometry: what an exporter put under one UID is taken apart.
"""

import logging
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
    "BurnedInAnnotation",
]  # fmt: skip
_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SCOUTS = frozenset(("LOCALIZER", "SCOUT", "TOPOGRAM"))
_SUFFIXES = (".dcm", ".ima", ".dicom", ".dcm.gz", ".ima.gz", ".dicom.gz")
_SCAN = "the slices of a scan"

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it also logs its warnings, with values of tags


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
        _add(series, file)
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


def _add(series: dict[str, list[_Series]], file: File) -> None:
    folder = PurePosixPath(file.path).parent.as_posix()
    named = file.path.lower().endswith(_SUFFIXES)
    if suffix_of(file.path, (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES)) or not (named or _is_marked(file.uri)):
        return
    header = _header(file)
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


def _header(file: File) -> _Header | None:
    """Return what is grouped by in a file; None where it has no DICOM header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote tags
        try:
            data = read_data_set(file.uri, stop_before_pixels=True, specific_tags=_TAGS)
            modality, uid, patient = (str(data.get(tag) or "") for tag in _NAMES)
            return _Header(modality, uid, patient, _geometry(data), _no_scan(data))
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


def _no_scan(data: FileDataset) -> NoScan | None:
    """Return why a file is no scan to learn from, or None."""
    kind = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind == _DIRECTORY:
        return NoScan("a DICOMDIR", _SCAN, "nothing is to be done: it lists files, which are read themselves")
    image_type = data.get("ImageType") or ()
    if _SCOUTS & {str(word).upper() for word in ((image_type,) if isinstance(image_type, str) else image_type)}:
        return NoScan("a localizer (ImageType LOCALIZER)", _SCAN, "nothing is to be done: it only plans a scan")
    if kind == _SECONDARY_CAPTURE or kind.startswith(f"{_SECONDARY_CAPTURE}."):
        return NoScan(
            "a secondary capture (SOPClassUID)",
            _SCAN,
            "where a converter wrote scans as secondary captures, set SOPClassUID to that of their modality",
        )
    if str(data.get("BurnedInAnnotation") or "").upper() == "YES":
        return NoScan(
            "an image with burned-in text (BurnedInAnnotation YES)",
            "pixels without names",
            "blank the text, and set BurnedInAnnotation to NO",
        )
    return None


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
