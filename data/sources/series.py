"""Layout ``dicom``: series by SeriesInstanceUID over a whole tree, whatever its folders and names."""

import logging
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from data.files import File, join, list_tree, open_file
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

_TAGS = ["Modality", "SeriesInstanceUID", "PatientID"]
_DAMAGE = (
    ArithmeticError, AttributeError, EOFError, InvalidDicomError, LookupError, NotImplementedError, OSError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it also logs its warnings, with values of tags


@dataclass
class _Series:
    modality: str
    patient: str
    folder: str
    files: list[str] = field(default_factory=list)


def find_dicom(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per series (per file for X-ray projections); a series without UID is its folder's files.

    With ``modality``, only series of that modality are read, so that SEG, SR and plans beside them are left out.
    ``images`` is matched against the folder of a series.
    """
    if options.labels is not None:
        check_pair(options.images, options.labels)
    files = list_tree(source)
    series: dict[str, _Series] = {}
    for file in files:
        _add(series, file)
    paths = {file.path for file in files}
    studies = []
    for key, one in sorted(series.items()):
        wildcards = Pattern(options.images).match(one.folder) if options.images else ()
        if wildcards is None or (options.modality and one.modality not in ("", options.modality)):
            continue
        label = Pattern(options.labels).fill(wildcards) if options.labels else None
        studies.append(_study(key, one, dataset, options, join(source, label) if label and label in paths else None))
    return studies


def _add(series: dict[str, _Series], file: File) -> None:
    folder = PurePosixPath(file.path).parent.as_posix()
    named = file.path.lower().endswith((".dcm", ".ima", ".dicom"))
    if suffix_of(file.path, (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES)) or not (named or _is_marked(file.uri)):
        return
    tags = _tags(file.uri)
    if tags is None:
        series[file.path] = _Series("", "", folder, [file.uri])
        return
    modality, uid, patient = tags
    key = file.path if modality in PROJECTIONS else uid or f"folder {folder}"
    series.setdefault(key, _Series(normal_modality(modality), patient, folder)).files.append(file.uri)


def _is_marked(uri: str) -> bool:
    """Tell whether a file has DICOM's mark after 128 bytes, or cannot be read and so becomes a bad study."""
    try:
        with open_file(uri) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # its message holds the path
        return True


def _tags(uri: str) -> tuple[str, str, str] | None:
    """Return modality, series and patient of a file; None where it has no DICOM header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote tags
        try:
            with open_file(uri) as file:
                data = dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            modality, uid, patient = (str(data.get(tag) or "") for tag in _TAGS)
        except _DAMAGE:
            return None
    return modality, uid, patient


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
    )
