"""Labels: the kinds of labels that samples may have, an object for each. A new kind is another object."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool


@dataclass(frozen=True)
class Labels:
    """A kind of label, as shards hold it.

    each             what a sample has, in words
    known            the column of the index that is true, or not null, where a sample has it
    columns          the columns that hold it
    names            which of a set's names its numbers have, from ``first`` on
    strata           the column of the index whose numbers are spread evenly over folds and fractions
    bytes_per_voxel  memory that it takes beside the voxels, about
    """

    each: str
    known: str
    columns: tuple[str, ...]
    names: str
    strata: str
    first: int = 0
    bytes_per_voxel: int = 0

    def held(self, rows: pa.Table) -> Bool[np.ndarray, " n"]:
        """Tell which rows of an index have it."""
        column = rows[self.known]
        return (column if pa.types.is_boolean(column.type) else column.is_valid()).to_numpy()


# In a label map, 0 is no label. Its values are not in the index, so that patients are told apart by their classes.
LABEL_MAP = Labels("a label map", "has_label", ("label",), "label_names", "classes", first=1, bytes_per_voxel=1)
CLASSES = Labels("a class", "classes", ("classes",), "class_names", "classes")
BOXES = Labels("known boxes", "boxes", ("boxes", "box_classes"), "box_names", "box_classes")
KINDS = (LABEL_MAP, CLASSES, BOXES)
