"""Table: the rows of a CSV file as its author meant them, whatever the separator and the program that wrote it.

A cell that pandas or R write for a missing value (blank, NaN, NA, null) is blank. The values of a table are private:
what is refused is named by its line, never by its text.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from data.files import folder_of, is_file, join, list_tree, read_bytes, shown
from data.quarantine import BadStudy, foreign
from data.sources.study import suffix_of

Row = dict[str, str]
Record = list[str] | BadStudy
"""The cells of a row, or why it is none."""

_SUFFIXES = (".csv", ".tsv")
_SEPARATORS = ",;\t|"
_BLANK = frozenset(("", "nan", "-nan", "na", "#na", "n/a", "#n/a", "<na>", "nat", "null"))
_LARGEST_CELL = 2**24
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_OTHER_TABLES = (".xlsx", ".xls", ".xlsm", ".ods", ".json", ".jsonl", ".parquet", ".feather", ".sav", ".rds")
_CSV = "a CSV file in UTF-8"
_SAVE = "save it as CSV in UTF-8 (Excel: 'CSV UTF-8')"


@dataclass(frozen=True)
class SourceTable:
    """A table: the names in its heading, its rows, the fault of each row or None, and the folder of its paths."""

    heading: list[str]
    rows: list[Row]
    faults: list[BadStudy | None]
    folder: str


def read_table(source: str, wanted: Sequence[str]) -> SourceTable:
    """Read the CSV file that a source is, or the only one in its folder.

    The separator is the one under which the heading has most of the ``wanted`` columns. A row shorter than the
    heading ends in blanks; a longer one is faulty, since nobody knows which cell is which, and so is a line that is
    none of a CSV file. Raises ValueError where there is no table, or a text that is none.
    """
    uri, folder = find_table(source)
    lines = _lines(_text(uri), uri)
    heading, *records = _records(lines, _separator(lines[0], wanted))
    if isinstance(heading, BadStudy) or (records and all(isinstance(record, BadStudy) for record in records)):
        fault = heading if isinstance(heading, BadStudy) else records[0]
        raise ValueError(f"table {_name(uri)}: {fault}")
    heading = [name.strip() for name in heading]
    rows, faults = [], []
    for record in records:
        values = [] if isinstance(record, BadStudy) else record
        texts = ["" if value.strip().lower() in _BLANK else value.strip() for value in values]
        if isinstance(record, BadStudy) or any(texts):
            rows.append(dict(zip(heading, [*texts, *[""] * len(heading)], strict=False)))
            faults.append(_fault(record, texts[len(heading) :], len(heading)))
    if not rows:
        raise ValueError(f"table {_name(uri)}: a heading and no rows; expected a row for each image; add the rows")
    return SourceTable(heading, rows, faults, folder)


def _fault(record: Record, more: Sequence[str], num_columns: int) -> BadStudy | None:
    """Return what is wrong with a row; ``more`` are its cells behind the last column."""
    if isinstance(record, BadStudy):
        return record
    if any("\0" in cell for cell in record):
        return BadStudy("a row that holds zero bytes", "text", "write the row again")
    return _too_long(num_columns + len(more), num_columns) if any(more) else None


def _too_long(found: int, expected: int) -> BadStudy:
    return BadStudy(
        f"a row of {found} cells under a heading of {expected} columns",
        "a cell for each column",
        "correct the row: quote a cell that holds the separator",
    )


def find_table(source: str) -> tuple[str, str]:
    """Return the address of the CSV file and of the folder that its paths are relative to."""
    if is_file(source):
        return source, folder_of(source)
    tables = [file for file in list_tree(source) if file.path.lower().endswith(_SUFFIXES) and "/" not in file.path]
    others = [file for file in list_tree(source) if suffix_of(file.path, _OTHER_TABLES) and "/" not in file.path]
    if len(tables) != 1:
        raise ValueError(
            f"source {shown(source)}: {len(tables)} CSV files; expected 1; "
            + ("give the path of the table itself as the source" if tables or not others else "")
            + (f"save the table ({suffix_of(others[0].path, _OTHER_TABLES)}) as CSV in UTF-8" if others else "")
        )
    return join(source, tables[0].path), source


def _name(uri: str) -> str:
    return shown(uri).rpartition("/")[2]


def _text(uri: str) -> str:
    content = read_bytes(uri)
    _check_is_text(content, uri)
    encoding = "utf-16" if content[:2] in _UTF_16 else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"table {_name(uri)}: line {line} is not UTF-8 text; expected {_CSV}; save it as UTF-8 "
            "(Excel: 'CSV UTF-8')"
        ) from None


def _check_is_text(content: bytes, uri: str) -> None:
    """Raise ValueError for a table in another format, whose first line would be taken for a heading."""
    if suffix := suffix_of(uri.partition("?")[0], _OTHER_TABLES):
        raise ValueError(f"table {_name(uri)}: a {suffix} file; expected {_CSV}; {_SAVE}")
    other = foreign(content[:4096], _CSV) if content else None
    if other is not None:
        raise ValueError(f"table {_name(uri)}: {other}")
    if content[:2] not in _UTF_16 and b"\0" in content.partition(b"\n")[0]:
        raise ValueError(
            f"table {_name(uri)}: its first line holds zero bytes, as a binary file does or UTF-16 without its mark; "
            f"expected {_CSV}; {_SAVE}"
        )


def _lines(text: str, uri: str) -> list[str]:
    """Return the lines with their ends, without blank lines and Excel's ``sep=;`` before the heading."""
    lines = io.StringIO(text, newline="").readlines()
    start = next((n for n, line in enumerate(lines) if line.strip() and not line.lower().startswith("sep=")), None)
    if start is None:
        raise ValueError(f"table {_name(uri)}: it is empty; expected a heading and rows; save it again")
    return lines[start:]


def _separator(heading: str, wanted: Sequence[str]) -> str:
    """Choose the separator that finds most of the wanted columns, else most columns."""
    names = {name.lower() for name in wanted}

    def found(separator: str) -> tuple[int, int]:
        record = next(_records([heading], separator))
        cells = [] if isinstance(record, BadStudy) else record
        return len(names & {cell.strip().lower() for cell in cells}), len(cells)

    return max(_SEPARATORS, key=found)


def _records(lines: Sequence[str], separator: str) -> Iterator[Record]:
    """Split lines into rows of cells; a cell in quotation marks may go over several lines.

    Where a row is none of a CSV file, its first line is the fault, and the next line begins a row: a quotation mark
    that is never closed swallows no other row.
    """
    csv.field_size_limit(_LARGEST_CELL)
    start = 0
    while start < len(lines):
        reader = csv.reader(islice(lines, start, None), delimiter=separator, strict=True, skipinitialspace=True)
        done = 0
        try:
            for cells in reader:
                done = reader.line_num
                yield cells
            return
        except csv.Error as error:
            start += done + 1
            yield BadStudy(
                f"line {start} is no line of a CSV file ({error})",
                "cells whose quotation marks are closed",
                "correct the line",
            )
