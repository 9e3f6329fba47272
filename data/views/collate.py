"""Collate: rows of shards, as Arrow holds them, into one Batch. Each sample's voxels are copied once, by memcpy."""

from collections import deque
from collections.abc import Sequence
from math import prod

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


class BatchMemory:
    """Memory for the tensors of batches: a batch that is handed back leaves its memory to later ones.

    The system then need not clear fresh pages, or lock them. ``pin`` makes it page-locked memory, from which a GPU
    copies while it computes. One thread may take memory while another hands it back.
    """

    def __init__(self, pin: bool = False) -> None:
        self._pin = pin
        self._free: deque[Tensor] = deque()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor whose values are undefined."""
        num_bytes = prod(shape) * dtype.itemsize
        tried = [self._free.popleft() for _ in range(len(self._free))]
        fitting = min((flat for flat in tried if len(flat) >= num_bytes), key=len, default=None)
        if fitting is None:
            # Free memory is too small: batches will be as large again.
            fitting = self._fresh(num_bytes)
        else:
            self._free.extend(flat for flat in tried if flat is not fitting)
        return fitting[:num_bytes].view(dtype).view(shape)

    def _fresh(self, num_bytes: int) -> Tensor:
        if self._pin:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        # numpy asks for huge pages, torch does not: filling fresh memory of this size is four times as fast.
        return torch.from_numpy(np.empty(num_bytes, dtype=np.uint8))

    def take_back(self, batch: Batch) -> None:
        """Take the memory of a batch that nothing reads any more: a later batch overwrites it."""
        held = [tensor.untyped_storage() for tensor in (batch.voxels, batch.labels) if tensor is not None]
        self._free.extend([torch.empty(0, dtype=torch.uint8).set_(storage) for storage in held])


def collate(table: pa.Table, memory: BatchMemory | None = None) -> Batch:
    """Return the rows of a table as a batch, padded at the far end with 0.

    The table has the columns of a shard plus ``number``, ``epoch`` and ``row``; ``label``, ``classes`` and ``boxes``
    with ``box_classes`` may be absent. Samples of different types are promoted to one that holds all their values.
    ``memory`` provides that of the voxels and the label maps; by default it is fresh.
    """
    memory = memory or BatchMemory()
    shapes = [tuple(shape) for shape in table["shape"].to_pylist()]
    dtypes = table["dtype"].to_pylist()
    names = set(table.column_names)
    return Batch(
        voxels=_stack(table["voxels"], shapes, dtypes, memory),
        extents=np.array([shape[1:] for shape in shapes], dtype=np.int64),
        scale=_floats(table["scale"]),
        offset=_floats(table["offset"]),
        spacing_mm=np.array(table["spacing_mm"].to_pylist(), dtype=np.float32),
        sample_ids=tuple(table["sample_id"].to_pylist()),
        volumes=tuple(table["volume"].to_pylist()),
        numbers=table["number"].to_numpy(),
        epochs=table["epoch"].to_numpy(),
        rows=table["row"].to_numpy(),
        labels=_labels(table, shapes, memory) if "label" in names else None,
        classes=torch.from_numpy(pad_classes(table["classes"])) if "classes" in names else None,
        boxes=_boxes(table, shapes) if "boxes" in names else None,
    )


def _boxes(table: pa.Table, shapes: Sequence[tuple[int, ...]]) -> tuple[Boxes | None, ...]:
    """Return each sample's boxes; padding lies at the far end, so that they stay where they are."""
    rows = zip(table["boxes"].to_pylist(), table["box_classes"].to_pylist(), shapes, strict=True)
    return tuple(boxes_of(corners, classes, len(shape) - 1) for corners, classes, shape in rows)


def _labels(table: pa.Table, shapes: Sequence[tuple[int, ...]], memory: BatchMemory) -> Tensor:
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
    return _stack(column, sizes, dtypes, memory)


def _stack(
    column: pa.ChunkedArray,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    memory: BatchMemory,
) -> Tensor:
    """Copy raw bytes (little-endian, C order) into one padded tensor (B, *largest shape)."""
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    dtype = np.result_type(*set(dtypes)).name
    if dtype not in _TORCH_DTYPES:
        raise ValueError(f"voxels of type {dtype} in a batch; expected one of {', '.join(_TORCH_DTYPES)}")
    out = memory.empty((len(shapes), *largest), _TORCH_DTYPES[dtype])
    for row, value, shape, stored in zip(out.numpy(), column, shapes, dtypes, strict=True):
        sample = np.frombuffer(value.as_buffer(), dtype=np.dtype(stored).newbyteorder("<")).reshape(shape)
        row[tuple(slice(size) for size in shape)] = sample
        for axis, size in enumerate(shape):
            row[(slice(None),) * axis + (slice(size, None),)] = 0
    return out


def _floats(column: pa.ChunkedArray) -> Tensor:
    return torch.tensor(column.to_numpy(), dtype=torch.float32)
