"""Check the header of a NRRD file before SimpleITK reads it: ITK takes every unknown space for LPS."""

import re

import numpy as np

from data.quarantine import CORRECT_HEADER, BadStudy, damaged, missing, undecoded

_SPACES = (
    "right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps",
    "right-anterior-superior-time", "rast", "left-anterior-superior-time", "last", "left-posterior-superior-time",
    "lpst",
)  # fmt: skip
_UNORIENTED = (
    "scanner-xyz", "scanner-xyz-time", "3d-right-handed", "3d-left-handed", "3d-right-handed-time",
    "3d-left-handed-time",
)  # fmt: skip
_READ = ("raw", "txt", "text", "ascii", "hex", "gz", "gzip")
_BZIP2 = ("bz2", "bzip2")
_BYTES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort", "unsigned short",
        "unsigned short int", "uint16", "uint16_t"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
    8: ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t",
        "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "double"),
}  # fmt: skip


def parse_nrrd(head: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header in lower case, and its length in bytes with the blank line that ends it."""
    end = re.search(rb"\r?\n\r?\n", head)
    lines = (head[: end.start()] if end else head).decode("latin-1").splitlines()
    fields = {}
    for line in lines[1:]:
        key, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[key.strip().lower()] = value.strip()
    return {("data file" if key == "datafile" else key): value for key, value in fields.items()}, (
        end.end() if end else len(head)
    )


def check_nrrd(fields: dict[str, str]) -> int:
    """Raise BadStudy for a header without orientation, voxel size or known voxels; return the bytes of its voxels."""
    _check_encoding(fields.get("encoding", "").lower())
    _check_space(fields)
    sizes = fields.get("sizes", "").split()
    if not sizes or not all(re.fullmatch(r"\d{1,18}", size) and int(size) for size in sizes):
        raise damaged("no sizes of at least 1 voxel along each axis", "a whole NRRD header")
    if fields.get("dimension") != str(len(sizes)):
        raise BadStudy(f"{len(sizes)} sizes beside another dimension", "a size for each dimension", CORRECT_HEADER)
    num_bytes = next((size for size, names in _BYTES.items() if fields.get("type", "").lower() in names), None)
    if num_bytes is None:
        raise BadStudy("a type of voxels that is no number (type)", "integers or floats", CORRECT_HEADER)
    return int(np.prod([int(size) for size in sizes], dtype=object)) * num_bytes


def _check_encoding(encoding: str) -> None:
    if encoding in _BZIP2:
        raise undecoded(f"voxels of encoding {encoding}", "encoding raw or gzip", "write it again with encoding gzip")
    if encoding not in _READ:
        raise damaged("no encoding that NRRD defines", "encoding raw or gzip")


def _check_directions(fields: dict[str, str]) -> None:
    """Raise BadStudy for directions that are not three vectors above 0; axes of times or channels have none."""
    if "space directions" not in fields:
        return
    words = re.findall(r"\([^()]*\)|none|\S+", fields["space directions"].lower())
    vectors = [word.strip("()").split(",") for word in words if word != "none"]
    try:
        lengths = [float(np.linalg.norm([float(number) for number in vector])) for vector in vectors]
    except ValueError:
        lengths = []
    if len(lengths) != 3 or any(len(vector) != 3 for vector in vectors):
        raise BadStudy(
            "'space directions' that are not three vectors of three numbers", "(x,y,z) per axis", CORRECT_HEADER
        )
    if not all(0 < length < np.inf for length in lengths):
        raise BadStudy(
            f"'space directions' of {' x '.join(f'{length:.4g}' for length in lengths)} mm",
            "sizes above 0",
            CORRECT_HEADER,
        )


def _check_space(fields: dict[str, str]) -> None:
    space = fields.get("space", "").lower().strip('"')
    if space not in _SPACES:
        known = f"space {space}, in which left and right are unknown"
        raise missing(
            f"orientation ({known if space in _UNORIENTED else 'no ' + repr('space') + ' field'})"
            if not space or space in _UNORIENTED
            else "orientation (a space that NRRD does not define)",
            "a space such as left-posterior-superior",
            "add the field if the orientation is known" if not space else "correct the field if it is known",
        )
    if "space directions" not in fields and "spacings" not in fields:
        raise missing(
            "voxel size (neither 'space directions' nor 'spacings')",
            "a size in mm, without which the scale is unknown",
            "add 'space directions' if they are known",
        )
    _check_directions(fields)
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    if units - {"mm", "", "millimeter", "millimeters", "millimetre", "millimetres"}:
        raise BadStudy("'space units' other than mm", "mm", "convert 'space directions' and 'space origin' to mm")
