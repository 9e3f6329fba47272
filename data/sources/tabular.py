"""Layout ``csv``: a table of image files, classes, boxes, patients and splits; rows of one image are one study."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.files import File, list_tree, open_file
from data.quarantine import BadStudy
from data.sources.columns import Columns, choose_columns
from data.sources.imagefiles import Found, find_image_files
from data.sources.labels import Classes, read_classes
from data.sources.pictures import study_of_file
from data.sources.rowboxes import NO_CLASS, Corners, box_numbers, found_boxes
from data.sources.study import (
    DICOM_SUFFIXES,
    PICTURE_SUFFIXES,
    VOLUME_SUFFIXES,
    SourceOptions,
    Split,
    Study,
    suffix_of,
)
from data.sources.table import Row, SourceTable, read_table

_SUFFIXES = (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES, *DICOM_SUFFIXES)
_NO_READER = BadStudy(
    "a row of the table that names a file of a kind that is not read",
    f"one of {', '.join(_SUFFIXES)}",
    "convert the file, or delete the row from the table",
)


@dataclass(frozen=True)
class _Statements:
    """The statements of one row about its image; ``patient`` and ``split`` are None where it says nothing."""

    found: Found
    classes: Classes
    patient: str | None
    split: Split | None
    fault: BadStudy | None
    box: Corners | None = None


def find_csv(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per image of a CSV file: the source itself, or the only one in its folder.

    How a row's file is found: see ``imagefiles.py``; the columns: ``columns.py``; the classes: ``labels.py``; boxes:
    ``rowboxes.py``. Several rows of one image are one study; where they contradict each other it has a fault. In a
    table with boxes, an image has the classes of all its rows. Raises ValueError where the table or a column is
    missing.
    """
    table = _read(source, options)
    columns = choose_columns(table.heading, table.rows, options)
    paths = [row[columns.image] for row in table.rows]
    files = find_image_files(paths, list_tree(table.folder), _SUFFIXES, table.folder)
    classes = read_classes(_sure(table, columns), columns.labels, options)
    rows_of: dict[str, list[_Statements]] = {}
    lines = zip(table.rows, table.faults, paths, files, classes, strict=True)
    for number, (row, fault, path, found, labels) in enumerate(lines, 1):
        key = found.path if isinstance(found, File) else path or f"row {number}"
        if isinstance(labels, BadStudy):
            fault, labels = fault or labels, (None, ())
        box = columns.box.box_of(row) if columns.box and fault is None else None
        if isinstance(box, BadStudy):
            fault, box = box, None
        fault = fault or (NO_CLASS if box and not labels[1] else columns.fault_of(row))
        said = _Statements(found, labels, columns.patient_of(row), columns.split_of(row), fault, box)
        rows_of.setdefault(key, []).append(said)
    numbers = None
    if columns.box:
        numbers = box_numbers((row.box, row.classes[1]) for rows in rows_of.values() for row in rows)
    return [_study(key, rows, dataset, options, numbers) for key, rows in rows_of.items()]


def _sure(table: SourceTable, columns: Columns) -> list[Row]:
    """Return the rows, without the labels of those that are faulty: such a label would become a class."""
    blank = dict.fromkeys(columns.labels, "")
    return [row if fault is None else row | blank for row, fault in zip(table.rows, table.faults, strict=True)]


def describe_table(source: str, options: SourceOptions) -> str:
    """Describe the use of each column of a CSV file."""
    table = _read(source, options)
    return choose_columns(table.heading, table.rows, options).describe(table.rows, options.patient_pattern)


def _read(source: str, options: SourceOptions) -> SourceTable:
    labels = options.label_columns or (options.label_column,)
    return read_table(source, [options.image_column, *labels])


def _study(
    key: str,
    rows: Sequence[_Statements],
    dataset: str,
    options: SourceOptions,
    box_classes: dict[str, int] | None,
) -> Study:
    """Return the study of an image's rows; ``box_classes`` are the numbers of boxes' classes, where there are any."""
    found = rows[0].found
    is_file = isinstance(found, File)
    blank = study_of_file(found if is_file else File(key, "", 0), dataset, options)
    patients = {row.patient for row in rows if row.patient} or {blank.patient}
    splits = {row.split for row in rows if row.split}
    classes = _joined([row.classes for row in rows], bool(options.label_separator) or box_classes is not None)
    fault = next((row.fault for row in rows if row.fault), None if is_file else found)
    if fault is None and classes is None:
        remedy = "join the classes in one row"
        remedy += "" if options.label_columns else ", or set option label_separator where an image may have several"
        fault = _contradiction(len(rows), "classes", remedy)
    if fault is None and (len(patients) > 1 or len(splits) > 1):
        fault = _contradiction(len(rows), "patients or splits", "correct the table")
    numbers, names = classes or (None, ())
    boxes = None if box_classes is None else found_boxes([(row.box, row.classes[1]) for row in rows], box_classes)
    study = replace(
        blank,
        patient=min(patients),
        split=min(splits, default=None),
        classes=numbers,
        class_names=names,
        boxes=boxes,
        fault=fault,
    )
    return _kind(study, found) if is_file and fault is None else study


def _joined(rows: Sequence[Classes], several: bool) -> Classes | None:
    """Return the classes that rows of one image agree on, or all of them where an image may have ``several``.

    None where the rows contradict each other.
    """
    known = list(dict.fromkeys(classes for classes in rows if classes[0] is not None))
    if len(known) < 2:
        return known[0] if known else (None, ())
    if not several:
        return None
    named = {number: name for numbers, names in known for number, name in zip(numbers or (), names, strict=True)}
    return tuple(named), tuple(named.values())


def _contradiction(num_rows: int, what: str, remedy: str) -> BadStudy:
    return BadStudy(f"an image of {num_rows} rows of the table with different {what}", "rows that agree", remedy)


def _kind(study: Study, file: File) -> Study:
    """Tell by a file's suffix, or by DICOM's mark where it has none of ours, how it is read."""
    if suffix_of(file.path, (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)):
        return study
    if suffix_of(file.path, DICOM_SUFFIXES) or _is_dicom(file.uri):
        return replace(study, kind="dicom")
    return replace(study, fault=_NO_READER)


def _is_dicom(uri: str) -> bool:
    try:
        with open_file(uri) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # the reader says why
        return True
