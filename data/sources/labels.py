"""Labels: the classes that a table names for each image, in one column or in one column per class.

One column: a text is a class, or several classes joined by ``label_separator`` (NIH's chest X-rays:
``Effusion|Mass``). Whole numbers are class numbers, in whatever form (pandas writes 2 as 2.0 beside a blank); other
texts are numbered in order, numbers before words and by their value. A blank means unlabelled.
One column per class (CheXpert): 1 means that the image has the class; 0 or blank, that it does not; -1 is uncertain.
The classes are numbered in the order of the columns.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

from data.quarantine import BadStudy
from data.sources.study import SourceOptions
from data.sources.table import Row

Classes = tuple[tuple[int, ...] | None, tuple[str, ...]]
"""The classes of each image by number (None: unknown), and the name of each class."""


_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.I)
LARGEST_CLASS = 9999  # larger numbers are codes: a network has an output for each number up to the largest
_TRUTHS = {"true": "True", "false": "False"}  # pandas and Excel write them in cases of their own
_CELLS: dict[object, int] = {"": 0, 0: 0, 1: 1, -1: -1, "True": 1, "False": 0}


def read_classes(rows: Sequence[Row], columns: tuple[str, ...], options: SourceOptions) -> list[Classes | BadStudy]:
    """Return the classes of each row from its label columns, which the options may name in another case.

    A row with an invalid value in a class's column gets its fault. Raises ValueError where all rows have one.
    """
    if not options.label_columns:
        texts = [_texts(row[columns[0]], options) for row in rows]
        numbers = _numbers({name for names in texts for name in names or ()})
        return [(None, ()) if names is None else _numbered(names, numbers) for names in texts]
    found = [_from_columns(row, columns, options) for row in rows]
    faults = [classes for classes in found if isinstance(classes, BadStudy)]
    if len(faults) == len(found):
        raise ValueError(str(faults[0]))
    return found


def in_numeric_order(name: str) -> tuple[bool, float, str]:
    """Return a sorting key that puts numbers before words and 2 before 10."""
    is_number = _NUMBER.fullmatch(name) is not None
    return not is_number, float(_value(name)) if is_number else 0.0, name


def _value(number: str) -> Decimal:
    """Return a number exactly: codes of 18 digits stay apart."""
    return Decimal(number.replace(",", "."))


def _texts(label: str, options: SourceOptions) -> tuple[str, ...] | None:
    if not label:
        return None
    parts = [part.strip() for part in label.split(options.label_separator)] if options.label_separator else [label]
    names = (_TRUTHS.get(part.lower(), part) for part in parts if part and part != options.no_class)
    return tuple(dict.fromkeys(names))


def _numbers(names: set[str]) -> dict[str, tuple[int, str]]:
    """Map each text to its class's number and name; texts of one number are one class."""
    if not all(_NUMBER.fullmatch(name) for name in names):
        return {name: (number, name) for number, name in enumerate(sorted(names, key=in_numeric_order))}
    values = {name: _value(name) for name in names}
    if all(value == value.to_integral_value() and 0 <= value <= LARGEST_CLASS for value in values.values()):
        return {name: (int(value), str(int(value))) for name, value in values.items()}
    order = sorted(set(values.values()))
    return {name: (order.index(value), min(n for n in names if values[n] == value)) for name, value in values.items()}


def _numbered(names: Sequence[str], numbers: dict[str, tuple[int, str]]) -> Classes:
    classes = dict(numbers[name] for name in names)
    return tuple(classes), tuple(classes.values())


def _from_columns(row: Row, columns: tuple[str, ...], options: SourceOptions) -> Classes | BadStudy:
    has, uncertain = [], False
    for number, name in enumerate(columns):
        value = _cell(row[name], name)
        if isinstance(value, BadStudy):
            return value
        uncertain |= value == -1
        if value == 1 or (value == -1 and options.uncertain == "positive"):
            has.append(number)
    if uncertain and options.uncertain == "unlabelled":
        return None, ()
    return tuple(has), tuple(options.label_columns[number] for number in has)


def _cell(text: str, column: str) -> int | BadStudy:
    """Return a cell's value: 1, 0 or -1, also with decimals as in CheXpert, and with a decimal comma; or a truth."""
    key = _value(text) if _NUMBER.fullmatch(text) else _TRUTHS.get(text.lower(), text)
    if key in _CELLS:
        return _CELLS[key]
    return BadStudy(
        f"column {column} has a value of {len(text)} letters (not shown: it may hold a name)",
        "1, 0, -1 or blank",
        "name only class columns in label_columns",
    )
