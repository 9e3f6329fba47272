"""Layout ``deeplesion``: the table ``DL_info.csv`` and 16-bit pictures of slices, as DeepLesion is released.

Data:      Yan et al., "DeepLesion", Journal of Medical Imaging 2018; the columns of ``DL_info.csv``. A pixel's value
           less 32768 is in HU. Seed 003 takes key slices with neighbours at 2.5 mm.
Reference: rsummers11/CADLab @ 2905104, ``LesaNet``, by the same authors: coordinates count from 1, at the centre of
           the first pixel; slices are numbered from head to feet.

A study is a key slice with the slices around it that the table names (``Slice_range``), brought to planes of 2.5 mm
by linear interpolation, so that the key slice stays a plane as it was. All rows of a key slice are one study, whose
boxes are one plane thick and lie on the key slice. The only class is ``lesion``. Rows that are ``Possibly_noisy`` are
left out and counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from data.files import File, list_tree
from data.quarantine import BadStudy
from data.sources.boxes import FoundBox
from data.sources.stack import PLANE_MM, Stack
from data.sources.study import SourceOptions, Split, Study
from data.sources.table import Row, read_table

NAME, BOXES, KEY, RANGE, SPACING = "File_name", "Bounding_boxes", "Key_slice_index", "Slice_range", "Spacing_mm_px_"
NOISY, SPLIT, PATIENT = "Possibly_noisy", "Train_Val_Test", "Patient_index"
COLUMNS = (NAME, BOXES, KEY, RANGE, SPACING, NOISY, SPLIT, PATIENT)
_SPLITS: dict[str, Split] = {"1": "train", "2": "val", "3": "test"}
LESION = "lesion"
_CENTRE = 0.5  # in pixels from the border of the image, where the table says 1


def find_deeplesion(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per key slice; raise ValueError where the table or one of its columns is missing."""
    table = read_table(source, COLUMNS)
    missing = [name for name in COLUMNS if name not in table.heading]
    if missing:
        raise ValueError(
            f"the table has {len(table.heading)} columns but not {', '.join(missing)}; expected those of "
            "DL_info.csv; copy it again from its source"
        )
    slices = _slices(list_tree(table.folder))
    rows_of: dict[str, list[tuple[int, Row, BadStudy | None]]] = {}
    for number, (row, fault) in enumerate(zip(table.rows, table.faults, strict=True), 1):
        if fault is not None or not _is_noisy(row):
            rows_of.setdefault(row.get(NAME) or f"row {number}", []).append((number, row, fault))
    return [_study(name, rows, slices, dataset, options) for name, rows in rows_of.items()]


def describe_deeplesion(source: str) -> str:
    """Say how many lesions a table names, and how many noisy rows are left out."""
    rows = read_table(source, COLUMNS).rows
    noisy = sum(map(_is_noisy, rows))
    left_out = f"; {noisy} possibly noisy rows are left out" if noisy else ""
    keys = len({row.get(NAME) for row in rows if not _is_noisy(row)})
    return f"boxes from the table: {len(rows) - noisy} lesions on {keys} key slices{left_out}"


def _is_noisy(row: Row) -> bool:
    return row.get(NOISY) == "1"


def _slices(files: Sequence[File]) -> dict[tuple[str, int], File]:
    """Return the slices by the name of their folder and their number: ``000001_01_01/109.png``."""
    found: dict[tuple[str, int], File] = {}
    for file in files:
        folder, _, name = file.path.rpartition("/")
        stem, _, suffix = name.rpartition(".")
        if suffix.lower() == "png" and stem.isascii() and stem.isdigit():
            found[folder.rpartition("/")[2], int(stem)] = file
    return found


def _study(
    name: str,
    rows: Sequence[tuple[int, Row, BadStudy | None]],
    slices: Mapping[tuple[str, int], File],
    dataset: str,
    options: SourceOptions,
) -> Study:
    blank = Study(name, "stack", (), options.patient(name, dataset), dataset)
    fault = next((fault for _, _, fault in rows if fault), None)
    try:
        if fault:
            raise fault
        parts = [_parsed(number, row) for number, row, _ in rows]
        _check_agree(rows)
        series, key = name.rpartition("_")[0], parts[0].key
        first, last = min(part.first for part in parts), max(part.last for part in parts)
        found = [slices.get((series, number)) for number in range(first, last + 1)]
        if lacking := sum(file is None for file in found):
            raise _lacking(rows[0][0], lacking, len(found))
    except BadStudy as bad:
        return replace(blank, fault=bad)
    stack = Stack(parts[0].spacing_mm, key - first, PLANE_MM)
    plane = stack.key_plane
    boxes = tuple(FoundBox((plane, *p.low), (plane + 1, *p.high), 0, LESION) for p in parts)
    row = rows[0][1]
    return replace(
        blank,
        image=tuple(file.uri for file in found if file),
        patient=row[PATIENT] if row[PATIENT] and options.patient_pattern is None else blank.patient,
        split=_SPLITS.get(row[SPLIT]),
        stack=stack,
        boxes=boxes,
    )


@dataclass(frozen=True)
class _Lesion:
    """A row: its key slice, the first and last slice, voxel size (D, H, W), and its box (y, x) to (y, x)."""

    key: int
    first: int
    last: int
    spacing_mm: tuple[float, float, float]
    low: tuple[float, float]
    high: tuple[float, float]


def _parsed(number: int, row: Row) -> _Lesion:
    """Return a row's lesion; raise BadStudy, which names row and column, where a cell has another form."""
    (key,) = _numbers(number, row, KEY, 1)
    first, last = _numbers(number, row, RANGE, 2)
    x, y, z = _numbers(number, row, SPACING, 3)
    left, upper, right, lower = _numbers(number, row, BOXES, 4)
    if not all(value == int(value) for value in (key, first, last)) or not first <= key <= last:
        raise _cell(number, RANGE, f"a range from {first:g} to {last:g} without the key slice {key:g}", "one with it")
    if min(x, y, z) <= 0:
        raise _cell(number, SPACING, f"{x:g}, {y:g}, {z:g} mm", "sizes above 0")
    low, high = (upper - _CENTRE, left - _CENTRE), (lower - _CENTRE, right - _CENTRE)
    return _Lesion(int(key), int(first), int(last), (z, y, x), low, high)


def _numbers(number: int, row: Row, column: str, count: int) -> list[float]:
    """Return the numbers of a cell, which commas separate."""
    try:
        values = [float(part) for part in row[column].split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise _cell(number, column, "another text", "1 number" if count == 1 else f"{count} numbers between commas")
    return values


def _cell(number: int, column: str, found: str, expected: str) -> BadStudy:
    return BadStudy(f"row {number} of the table, column {column}: {found}", expected, "correct the table")


def _check_agree(rows: Sequence[tuple[int, Row, BadStudy | None]]) -> None:
    """Raise BadStudy where rows of one key slice are of two patients or splits, or of two grids."""
    for column in (KEY, SPACING, SPLIT, PATIENT):
        if len({row[column] for _, row, _ in rows}) > 1:
            raise BadStudy(
                f"{len(rows)} rows of one key slice (the first is row {rows[0][0]}) with different {column}",
                "rows that agree",
                "correct the table",
            )


def _lacking(number: int, lacking: int, total: int) -> BadStudy:
    return BadStudy(
        f"row {number} of the table, whose key slice lacks {lacking} of {total} slices",
        "pictures SERIES/NNN.png of all slices of its Slice_range",
        "unpack the archives that hold them, or delete the row",
    )
