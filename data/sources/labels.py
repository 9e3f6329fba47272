"""Labels: the classes that a table names for each image, in one column or in one column per class.

One column: a text is a class, or several classes joined by ``label_separator`` (NIH's chest X-rays:
``Effusion|Mass``). Whole numbers are class numbers, other texts are numbered in order. A blank means unlabelled.
One column per class (CheXpert): 1 means that the image has the class; 0 or blank, that it does not; -1 is uncertain.
The classes are numbered in the order of the columns.
"""

from collections.abc import Sequence

from data.sources.columns import Row
from data.sources.study import SourceOptions

Classes = tuple[tuple[int, ...] | None, tuple[str, ...]]
"""The classes of each image by number (None: unknown), and the name of each class."""


def read_classes(rows: Sequence[Row], columns: tuple[str, ...], options: SourceOptions) -> list[Classes]:
    """Return the classes of each row from its label columns, which the options may name in another case.

    Raises ValueError for an invalid value in a class's column.
    """
    if options.label_columns:
        return [_from_columns(row, columns, options) for row in rows]
    texts = [_texts(row[columns[0]].strip(), options) for row in rows]
    numbers = _numbers({name for names in texts for name in names or ()})
    return [(None if names is None else tuple(numbers[name] for name in names), names or ()) for names in texts]


def _texts(label: str, options: SourceOptions) -> tuple[str, ...] | None:
    if not label:
        return None
    parts = [part.strip() for part in label.split(options.label_separator)] if options.label_separator else [label]
    return tuple(dict.fromkeys(part for part in parts if part and part != options.no_class))


def _numbers(names: set[str]) -> dict[str, int]:
    if all(name.isdigit() for name in names):
        return {name: int(name) for name in names}
    return {name: number for number, name in enumerate(sorted(names))}


def _from_columns(row: Row, columns: tuple[str, ...], options: SourceOptions) -> Classes:
    has, uncertain = [], False
    for number, name in enumerate(columns):
        value = _value(row[name], name)
        uncertain |= value == -1
        if value == 1 or (value == -1 and options.uncertain == "positive"):
            has.append(number)
    if uncertain and options.uncertain == "unlabelled":
        return None, ()
    return tuple(has), tuple(options.label_columns[number] for number in has)


def _value(text: str, column: str) -> int:
    """Return a cell's value: 1, 0 or -1, also with decimals as in CheXpert."""
    known = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1}
    if text.strip() not in known:
        raise ValueError(
            f"column {column} has a value of {len(text)} letters (not shown: it may hold a name); expected 1, 0, -1 "
            "or blank; name only class columns in label_columns"
        )
    return known[text.strip()]
