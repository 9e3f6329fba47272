"""DICOM files as they lie on disk: with or without a preamble, gzipped or not, plain or enhanced with one frame."""

import logging
import re
import zlib
from gzip import GzipFile
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from data.files import open_file
from data.quarantine import BadStudy

_HEAD_BYTES = 1024
_GZIP = b"\x1f\x8b"
_LENGTHS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_FIRST_GROUPS = (0x0002, 0x0008)
GEOMETRY = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
FRAME_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_OF_A_FRAME = (*GEOMETRY, "SliceThickness", "RescaleSlope", "RescaleIntercept")

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it also logs its warnings, with values of tags


def read_data_set(uri: str, **options: Any) -> FileDataset:
    """Read a DICOM file; ``options`` are dcmread's. Raises InvalidDicomError for a file of another kind."""
    with open_file(uri) as file:
        gzipped = file.read(2) == _GZIP
        file.seek(0)
        stream: Any = GzipFile(fileobj=file) if gzipped else file
        if gzipped and not options:
            stream = BytesIO(stream.read())  # to the end, so that its checksum is compared
        head = stream.read(_HEAD_BYTES)
        stream.seek(0)
        data = dcmread(stream, force=is_bare(head), **options)
    if "TransferSyntaxUID" not in data.file_meta:
        data.file_meta = FileMetaDataset() if not data.file_meta else data.file_meta
        implicit, little = data.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    _flatten(data)
    return data


def is_dicom(uri: str) -> bool:
    """Tell by its first bytes whether a file, or what was gzipped into it, is DICOM."""
    with open_file(uri) as file:
        head = file.read(_HEAD_BYTES)
        if head.startswith(_GZIP):
            file.seek(0)
            try:
                head = GzipFile(fileobj=file).read(_HEAD_BYTES)
            except (OSError, EOFError, zlib.error):
                return False
    return head[128:132] == b"DICM" or is_bare(head)


def is_bare(head: bytes) -> bool:
    """Tell whether bytes begin as a data set without preamble: three elements in order, from group 2 or 8 on."""
    if head[128:132] == b"DICM":
        return False
    tags: list[tuple[int, int]] = []
    place = 0
    while len(tags) < 3 and place + 12 <= len(head):
        group, element = (int.from_bytes(head[at : at + 2], "little") for at in (place, place + 2))
        kind = head[place + 4 : place + 6]
        if kind in _LENGTHS:
            start, length = place + 12, int.from_bytes(head[place + 8 : place + 12], "little")
        elif re.fullmatch(rb"[A-Z]{2}", kind):
            start, length = place + 8, int.from_bytes(head[place + 6 : place + 8], "little")
        else:
            start, length = place + 8, int.from_bytes(head[place + 4 : place + 8], "little")
        tags.append((group, element))
        place = start + length
    return len(tags) == 3 and tags[0][0] in _FIRST_GROUPS and all(one < other for one, other in pairwise(tags))


def _flatten(data: Dataset) -> None:
    """Give an enhanced image of one frame the tags of a plain one, from its functional groups."""
    frames = [data[name][0] for name in FRAME_GROUPS if name in data and len(data[name].value) == 1]
    if not frames or int(data.get("NumberOfFrames") or 1) != 1:
        return
    for frame in frames:
        for macro in frame:
            for item in macro.value if macro.VR == "SQ" else ():
                for name in _OF_A_FRAME:
                    if name in item and name not in data:
                        data[name] = item[name]


def numbers(data: Dataset, name: str) -> tuple[float, ...]:
    """Return a tag's numbers, none where it is missing or empty; raise BadStudy where it holds something else."""
    try:
        value = data.get(name)
        if value is None or value == "":
            return ()
        found = tuple(float(one) for one in (value if isinstance(value, MultiValue) else [value]))
    except (ValueError, TypeError, ArithmeticError):
        raise BadStudy(
            f"{name} that is no number{_shown(data, name)}",
            "numbers with a decimal point",
            "have the program that wrote the series mended, or correct the tag",
        ) from None
    if not np.isfinite(found).all():
        raise BadStudy(f"{name} that is not finite", "finite numbers", "correct the tag, or remove the series")
    return found


def _shown(data: Dataset, name: str) -> str:
    """Return a tag's text where it is made of nothing but digits and signs, which a name is not."""
    value = data.get_item(name).value
    value = value.decode("latin-1") if isinstance(value, bytes) else value
    text = "\\".join(str(one) for one in value) if isinstance(value, MultiValue) else str(value)
    text = text.strip().replace("\\", " and ")
    return f" ({text})" if re.fullmatch(r"[-+\d.,eE ]+( and [-+\d.,eE ]+)*", text) and len(text) <= 60 else ""
