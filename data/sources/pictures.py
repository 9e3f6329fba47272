"""Layouts ``class_folders`` (a folder per class, splits above) and ``csv`` (a table of image files and labels)."""

import csv
import io
from dataclasses import replace

from data.files import File, is_file, join, list_tree, read_bytes, shown
from data.quarantine import BadStudy
from data.sources.columns import Row, choose_columns
from data.sources.labels import read_classes
from data.sources.pairing import Pattern
from data.sources.study import (
    PICTURE_SUFFIXES,
    SPLIT_NAMES,
    VOLUME_SUFFIXES,
    SourceOptions,
    Study,
    suffix_of,
)

_SUFFIXES = (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)
_NO_FILE = BadStudy(
    "a row of the table without its image file",
    "a file at the given path",
    "add the file, or delete the row from the table",
)


def find_class_folders(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per picture (or volume); its folder is its class, numbered in order of the names.

    Folders named train, val or test, above or below the classes, are splits, not classes.
    """
    files = [file for file in list_tree(source) if suffix_of(file.path, _SUFFIXES) and "/" in file.path]
    if options.images:
        files = [file for file in files if Pattern(options.images).match(file.path) is not None]
    folders = {file.path: file.path.split("/")[:-1] for file in files}
    class_of = {path: "/".join(p for p in parts if p.lower() not in SPLIT_NAMES) for path, parts in folders.items()}
    names = sorted({name for name in class_of.values() if name})
    studies = []
    for file in files:
        split = next((SPLIT_NAMES[part.lower()] for part in folders[file.path] if part.lower() in SPLIT_NAMES), None)
        study = replace(_picture(file, dataset, options), split=split)
        name = class_of[file.path]
        studies.append(replace(study, class_names=(name,), classes=(names.index(name),)) if name else study)
    return studies


def find_csv(source: str, dataset: str, options: SourceOptions) -> list[Study]:
    """Find one study per row of a CSV file: the source itself, or the only one in its folder.

    Image paths are relative to the table, with or without their suffix. Its columns: see ``columns.py``; its classes:
    see ``labels.py``. Raises ValueError where the table or a column is missing.
    """
    rows, folder = _read_table(source)
    columns = choose_columns(rows, options)
    files = {file.path: file for file in list_tree(folder) if suffix_of(file.path, _SUFFIXES)}
    by_stem = {path[: -len(suffix_of(path, _SUFFIXES) or "")]: file for path, file in files.items()}
    classes = read_classes(rows, columns.labels, options)
    studies = []
    for row, (numbers, names) in zip(rows, classes, strict=True):
        path = row[columns.image].strip().removeprefix("./")
        file = files.get(path) or by_stem.get(path)
        study = _picture(file or File(path, "", 0), dataset, options)
        patient = columns.patient_of(row) or study.patient
        fault = None if file else _NO_FILE
        study = replace(study, split=columns.split_of(row), patient=patient, fault=fault)
        studies.append(replace(study, classes=numbers, class_names=names))
    return studies


def describe_table(source: str, options: SourceOptions) -> str:
    """Describe the use of each column of a CSV file."""
    rows, _ = _read_table(source)
    return choose_columns(rows, options).describe(rows, options.patient_pattern)


def _picture(file: File, dataset: str, options: SourceOptions) -> Study:
    is_volume = suffix_of(file.path, VOLUME_SUFFIXES) is not None
    return Study(
        key=file.path,
        kind="volume" if is_volume else "picture",
        image=(file.uri,) if file.uri else (),
        patient=options.patient(file.path, dataset),
        dataset=dataset,
        modality=options.modality,
        rescale=options.rescale,
    )


def _read_table(source: str) -> tuple[list[Row], str]:
    """Return the rows of a CSV file, and the address of the folder that its paths are relative to."""
    table, folder = _find_table(source)
    rows = csv.DictReader(io.StringIO(read_bytes(table).decode("utf-8-sig")), restval="")
    return list(rows), folder


def _find_table(source: str) -> tuple[str, str]:
    """Return the address of the CSV file and of the folder that its paths are relative to."""
    address, _, query = source.partition("?")
    if is_file(source):
        return source, address.rsplit("/", 1)[0] + (f"?{query}" if query else "")
    tables = [file for file in list_tree(source) if file.path.lower().endswith(".csv") and "/" not in file.path]
    if len(tables) != 1:
        raise ValueError(
            f"source {shown(source)}: {len(tables)} CSV files; expected 1; give the path of the table "
            "itself as the source"
        )
    return join(source, tables[0].path), source
