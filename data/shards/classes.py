"""Classes: the column of shards that lists the classes of each row; null where its classes are unknown.

A picture has one class where classes exclude each other; otherwise several, or none of the classes looked for: [].
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

NO_CLASS = -1


def pad_classes(column: pa.ChunkedArray) -> Int64[np.ndarray, "n m"]:
    """Return the classes of each row, padded with -1 to the length of the longest list, and at least to one."""
    lists = column.combine_chunks()
    counts = lists.value_lengths().fill_null(0).to_numpy()
    padded = np.full((len(counts), max(1, counts.max(initial=0))), NO_CLASS, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = lists.flatten().to_numpy()
    return padded


def count_classes(column: pa.ChunkedArray) -> dict[int, int]:
    """Return the number of rows of each class that occurs, in order of the classes."""
    found = np.unique(column.combine_chunks().flatten().to_numpy(), return_counts=True)
    return {int(number): int(count) for number, count in zip(*found, strict=True)}
