"""Check the header of a MetaImage file before SimpleITK reads it.

ITK ends the whole process on some headers (93 axes), and takes 1 mm where the header has no voxel size.
"""

import re

import numpy as np

from data.quarantine import CORRECT_HEADER, GIVE_PICTURE, SPLIT_VOLUMES, BadStudy, damaged, missing

_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
_VECTORS = {
    "ElementSpacing": 3, "ElementSize": 3, "TransformMatrix": 9, "Rotation": 9, "Orientation": 9, "Offset": 3,
    "Position": 3, "Origin": 3, "CenterOfRotation": 3,
}  # fmt: skip


def parse_metaimage(head: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header, and its length in bytes, which its field ElementDataFile ends."""
    fields = {}
    for line in re.finditer(rb"[^\n]*\n?", head):
        key, _, value = line.group().decode("latin-1").partition("=")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return fields, line.end()
    raise damaged("no field ElementDataFile in the header", "a whole MetaImage header")


def check_metaimage(fields: dict[str, str]) -> int:
    """Raise BadStudy for a header that is not that of a volume with a known size; return the bytes of its voxels."""
    sizes = _integers(fields.get("DimSize", ""))
    axes = fields.get("NDims", "")
    if axes != "3" or len(sizes) != 3:
        raise BadStudy(
            f"{axes if axes.isdigit() else 'no number of'} axes of {tuple(sizes)} voxels (NDims and DimSize)",
            "3 axes (x, y, z)",
            f"{GIVE_PICTURE}; {SPLIT_VOLUMES}" if axes == str(len(sizes)) else CORRECT_HEADER,
        )
    if min(sizes) < 1:
        raise BadStudy(f"axes of {tuple(sizes)} voxels", "at least 1 voxel along each", CORRECT_HEADER)
    if not {"ElementSpacing", "ElementSize"} & set(fields):
        raise missing(
            "voxel size (neither ElementSpacing nor ElementSize)",
            "a size in mm, without which the scale is unknown",
            "add ElementSpacing if it is known",
        )
    for name, count in _VECTORS.items():
        if name in fields:
            _check_vector(name, fields[name], count)
    kind = fields.get("ElementType", "")
    if kind not in _BYTES:
        raise BadStudy("an ElementType that MetaImage does not define", f"one of {', '.join(_BYTES)}", CORRECT_HEADER)
    channels = _integers(fields.get("ElementNumberOfChannels", "1"))
    if len(channels) != 1 or channels[0] < 1:
        raise BadStudy("ElementNumberOfChannels that is no count", "1 or more", CORRECT_HEADER)
    return int(np.prod(sizes, dtype=object)) * channels[0] * _BYTES[kind]


def _integers(text: str) -> list[int]:
    words = text.split()
    return [int(word) for word in words] if all(re.fullmatch(r"-?\d{1,18}", word) for word in words) else []


def _check_vector(name: str, text: str, count: int) -> None:
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise BadStudy(f"{name} that is not {count} finite numbers", f"{count} numbers", CORRECT_HEADER)
    if name == "ElementSpacing" and min(values) <= 0:
        raise BadStudy(f"{name} {' x '.join(f'{v:.4g}' for v in values)}", "sizes above 0", CORRECT_HEADER)
