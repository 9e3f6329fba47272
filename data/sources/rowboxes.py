"""Rowboxes: tables with a row for each box, as of VinDr-CXR, of RSNA's pneumonia challenge and of NIH's BBox list.

Four columns hold a row's box: left and upper border with right and lower border (``x_min``, ``y_min``, ``x_max``,
``y_max``) or with width and height (``x``, ``y``, ``width``, ``height``), in pixels from the borders of the image. A
row in which all four are blank says that its image has no such finding.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.quarantine import BadStudy
from data.sources.boxes import FoundBox
from data.sources.labels import in_numeric_order
from data.sources.table import Row

# Lower case, letters and digits only.
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
_SIZES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("bboxx", "y", "w", "h"))
Corners = tuple[float, float, float, float]
"""Low and high corner of a box: (y, x, y, x)."""


@dataclass(frozen=True)
class BoxColumns:
    """The columns of a row's box: x and y, then those of the other corner, or width and height (``are_sizes``)."""

    names: tuple[str, ...]
    are_sizes: bool

    def box_of(self, row: Row) -> Corners | BadStudy | None:
        """Return a row's box; None where its cells are blank."""
        cells = [row[name].replace(",", ".") for name in self.names]
        if not any(cells):
            return None
        try:
            x, y, right, lower = map(float, cells)
        except ValueError:
            return self._fault("cells that are no four numbers (not shown: they may hold a name)")
        if self.are_sizes:
            right, lower = x + right, y + lower
        if not all(map(math.isfinite, (x, y, right, lower))) or x >= right or y >= lower:
            return self._fault(f"a box from ({x:g}, {y:g}) to ({right:g}, {lower:g})")
        return y, x, lower, right

    def _fault(self, found: str) -> BadStudy:
        return BadStudy(
            f"a row whose columns {', '.join(self.names)} hold {found}",
            "a width and a height above 0, or four blank cells",
            "correct the row, or delete it",
        )


def choose_box_columns(heading: Sequence[str], wanted: tuple[str, ...]) -> BoxColumns | None:
    """Return the columns of boxes: those wanted, or four of the usual names; None where there are none.

    A single empty text as ``wanted`` chooses none. Raises ValueError for another number of columns, or missing ones.
    """
    if wanted == ("",):
        return None
    if wanted:
        known = {name.lower(): name for name in heading}
        missing = [name for name in wanted if name.lower() not in known]
        if missing or len(wanted) != 4:
            raise ValueError(
                f"box_columns {', '.join(wanted)}: {f'no column {missing[0]}' if missing else len(wanted)}; "
                "expected four columns of the table: x_min, y_min, x_max and y_max, or x, y, width and height"
            )
        names = tuple(known[name.lower()] for name in wanted)
        return BoxColumns(names, are_sizes=_plain(names[2]) in ("w", "width"))
    plain = {_plain(name): name for name in heading}
    for family in (*_CORNERS, *_SIZES):
        if all(name in plain for name in family):
            return BoxColumns(tuple(plain[name] for name in family), are_sizes=family in _SIZES)
    return None


def found_boxes(
    rows: Iterable[tuple[Corners | None, tuple[str, ...]]], numbers: dict[str, int]
) -> tuple[FoundBox, ...]:
    """Return the boxes of an image's rows, each with the number of its class; a row of two classes has two."""
    return tuple(
        FoundBox(corners[:2], corners[2:], numbers[name], name)
        for corners, names in rows
        if corners
        for name in names
    )


def box_numbers(rows: Iterable[tuple[Corners | None, tuple[str, ...]]]) -> dict[str, int]:
    """Number the classes that have boxes, from 0 in order of their names."""
    names = {name for corners, names in rows if corners for name in names}
    return {name: number for number, name in enumerate(sorted(names, key=in_numeric_order))}


NO_CLASS = BadStudy(
    "a row with a box and without a class",
    "the class of the box",
    "add it in the column of classes, or delete the row",
)


def _plain(column: str) -> str:
    return "".join(filter(str.isalnum, column.lower()))
