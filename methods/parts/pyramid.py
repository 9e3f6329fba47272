"""Pyramid: the patches of a grid that a context holds, and the patches that are predicted from it.

Rows follow the grid's first axis, columns are its lines along that axis. A context is a patch in the last row of the
upper half and, in the k-th row above it, the patches up to k columns away: an inverted pyramid. The rows below it
in the same column are predicted (o: context, x: predicted):

    . o o o .
    . . o . .
    . . x . .
    . . x . .
"""

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal

import numpy as np
from jaxtyping import Int

Border = Literal["mirror", "zero"]
Cell = tuple[int, ...]


@dataclass(frozen=True)
class Pyramid:
    """Contexts and predicted patches of every column of a grid; ``levels`` None means all rows above, at least 1.

    Reference: HealthML/self-supervised-3d-tasks @ ecc86ef; in its grids of 2 or 3 rows, the row above is the mirror
    image of a row that is to be predicted, which ``check`` refuses.
    """

    grid: Cell
    levels: int | None
    skip_rows: int
    border: Border

    @property
    def row(self) -> int:
        """The row of the patch at a context's tip."""
        return self.grid[0] // 2 - 1

    @property
    def columns(self) -> list[Cell]:
        return list(product(*(range(length) for length in self.grid[1:])))

    def context_of(self, column: Cell) -> list[Cell | None]:
        """List the patches of a column's context in raster order, top row first; None beyond a zero border."""
        levels = self.levels or max(1, self.row)
        return [
            self._inside((self.row - level, *(c + o for c, o in zip(column, offset, strict=True))))
            for level in range(levels, -1, -1)
            for offset in product(range(-level, level + 1), repeat=len(column))
        ]

    def predicted_of(self, column: Cell) -> list[Cell]:
        """List the patches to be predicted in a column, from the top."""
        return [(row, *column) for row in range(self.row + 1 + self.skip_rows, self.grid[0])]

    def contexts(self) -> Int[np.ndarray, "q t"]:
        """Return the raster indices of all contexts' patches; places beyond the border get the number of patches."""
        beyond = prod(self.grid)
        return np.array(
            [[beyond if cell is None else self._index(cell) for cell in self.context_of(c)] for c in self.columns]
        )

    def predicted(self) -> Int[np.ndarray, "q r"]:
        """Return the raster indices of the patches to be predicted in all columns."""
        return np.array([[self._index(cell) for cell in self.predicted_of(c)] for c in self.columns])

    def check(self, overlap: float) -> None:
        """Raise ValueError where rows or columns are too few, or a context holds a patch to be predicted.

        ``overlap`` is the share of a cell that the next one repeats.
        """
        if len(self.columns) < 2 or not self.predicted_of(self.columns[0]):
            raise ValueError(
                f"method.patches.grid {self.grid} with method.skip_rows {self.skip_rows} leaves "
                f"{len(self.columns)} columns and {len(self.predicted_of(self.columns[0]))} rows to predict; "
                "give two columns and one row or more"
            )
        for column in self.columns:
            for seen, sought in product(self.context_of(column), self.predicted_of(column)):
                if seen is not None and _share_voxels(seen, sought, overlap):
                    raise ValueError(
                        f"method.patches.grid {self.grid}: the context of column {column} contains a patch to be "
                        f"predicted from it (patch {seen} shares voxels with {sought}); give 4 rows or more, "
                        "fewer method.levels, more method.skip_rows or less method.patches.overlap"
                    )

    def _inside(self, cell: Cell) -> Cell | None:
        mirrored = tuple(_mirror(position, length) for position, length in zip(cell, self.grid, strict=True))
        return None if self.border == "zero" and mirrored != cell else mirrored

    def _index(self, cell: Cell) -> int:
        return int(np.ravel_multi_index(cell, self.grid))


def _mirror(position: int, length: int) -> int:
    """Return a position on a line, mirrored at its first and last: -1 becomes 1."""
    if length == 1:
        return 0
    folded = abs(position) % (2 * length - 2)
    return min(folded, 2 * length - 2 - folded)


def _share_voxels(first: Cell, second: Cell, overlap: float) -> bool:
    """Tell whether two cells overlap: along every axis they begin less than a cell apart."""
    return all(abs(a - b) * (1 - overlap) < 1 - 1e-9 for a, b in zip(first, second, strict=True))
