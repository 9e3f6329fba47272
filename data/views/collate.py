"""Collate: rows of shards, as Arrow holds them, into one Batch. Each sample's voxels are copied once, by memcpy."""

import sys
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.boxes import Boxes
from data.shards.classes import pad_classes
from data.shards.writer import boxes_of
from data.views.batch import Batch

_TORCH_DTYPES = {
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "float16": torch.float16,
    "float32": torch.float32,
}
_LABEL_DTYPES = {1: "uint8", 2: "uint16"}
_REFERENCES_WHEN_FREE = 3  # the list, the loop's variable, and the argument that asks


class BatchMemory:
    """Memory of past batches, reused by later ones: the system need not clear fresh pages.

    An array is free when nothing refers to it but this list; tensors and their views refer to it.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return an array whose values are undefined."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        free = [array for array in self._arrays if sys.getrefcount(array) <= _REFERENCES_WHEN_FREE]
        fitting = next((array for array in free if array.nbytes >= num_bytes), None)
        if fitting is None:
            # The free arrays are too small: batches will be as large again.
            self._arrays = [array for array in self._arrays if not any(array is other for other in free)]
            # numpy asks for huge pages, torch does not: filling fresh memory of this size is four times as fast.
            fitting = np.empty(num_bytes, dtype=np.uint8)
            self._arrays.append(fitting)
        return fitting[:num_bytes].view(dtype).reshape(shape)


def collate(table: pa.Table, pin: bool = False, memory: BatchMemory | None = None) -> Batch:
    """Return the rows of a table as a batch, padded at the far end with 0.

    The table has the columns of a shard plus ``number``, ``epoch`` and ``row``; ``label``, ``classes`` and ``boxes``
    with ``box_classes`` may be absent. Samples of different types are promoted to one that holds all their values.
    ``pin`` places the tensors in page-locked memory, from which a GPU copies while it computes; else ``memory`` may
    provide it.
    """
    memory = memory or BatchMemory()
    shapes = [tuple(shape) for shape in table["shape"].to_pylist()]
    dtypes = table["dtype"].to_pylist()
    names = set(table.column_names)
    return Batch(
        voxels=_stack(table["voxels"], shapes, dtypes, pin, memory),
        extents=np.array([shape[1:] for shape in shapes], dtype=np.int64),
        scale=_floats(table["scale"]),
        offset=_floats(table["offset"]),
        spacing_mm=np.array(table["spacing_mm"].to_pylist(), dtype=np.float32),
        sample_ids=tuple(table["sample_id"].to_pylist()),
        volumes=tuple(table["volume"].to_pylist()),
        numbers=table["number"].to_numpy(),
        epochs=table["epoch"].to_numpy(),
        rows=table["row"].to_numpy(),
        labels=_labels(table, shapes, pin, memory) if "label" in names else None,
        classes=torch.from_numpy(pad_classes(table["classes"])) if "classes" in names else None,
        boxes=_boxes(table, shapes) if "boxes" in names else None,
    )


def _boxes(table: pa.Table, shapes: Sequence[tuple[int, ...]]) -> tuple[Boxes | None, ...]:
    """Return each sample's boxes; padding lies at the far end, so that they stay where they are."""
    rows = zip(table["boxes"].to_pylist(), table["box_classes"].to_pylist(), shapes, strict=True)
    return tuple(boxes_of(corners, classes, len(shape) - 1) for corners, classes, shape in rows)


def _labels(table: pa.Table, shapes: Sequence[tuple[int, ...]], pin: bool, memory: BatchMemory) -> Tensor:
    """Return (B, *S) integer labels; their type follows from their bytes per voxel."""
    column = table["label"]
    if column.null_count:
        missing = table["sample_id"][column.is_null().to_pylist().index(True)]
        raise ValueError(
            f"sample {missing}: 1 of {column.null_count} in a batch of {len(column)} without a label, expected 0; "
            "select labelled samples only"
        )
    sizes = [shape[1:] for shape in shapes]
    dtypes = [
        _LABEL_DTYPES[value.as_buffer().size // int(np.prod(size))] for value, size in zip(column, sizes, strict=True)
    ]
    return _stack(column, sizes, dtypes, pin, memory)


def _stack(
    column: pa.ChunkedArray,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    pin: bool,
    memory: BatchMemory,
) -> Tensor:
    """Copy raw bytes (little-endian, C order) into one padded tensor (B, *largest shape)."""
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    dtype = np.result_type(*set(dtypes)).name
    if dtype not in _TORCH_DTYPES:
        raise ValueError(f"voxels of type {dtype} in a batch; expected one of {', '.join(_TORCH_DTYPES)}")
    if pin:
        out = torch.empty((len(shapes), *largest), dtype=_TORCH_DTYPES[dtype], pin_memory=True)
    else:
        out = torch.from_numpy(memory.empty((len(shapes), *largest), dtype))
    for row, value, shape, stored in zip(out.numpy(), column, shapes, dtypes, strict=True):
        sample = np.frombuffer(value.as_buffer(), dtype=np.dtype(stored).newbyteorder("<")).reshape(shape)
        row[tuple(slice(size) for size in shape)] = sample
        for axis, size in enumerate(shape):
            row[(slice(None),) * axis + (slice(size, None),)] = 0
    return out


def _floats(column: pa.ChunkedArray) -> Tensor:
    return torch.tensor(column.to_numpy(), dtype=torch.float32)
