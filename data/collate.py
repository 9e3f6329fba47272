"""Collate: rows of shards, as Arrow holds them, into one Batch. Each sample's voxels are copied once, by memcpy."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.batch import Batch

_TORCH_DTYPES = {
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "float16": torch.float16,
    "float32": torch.float32,
}
_LABEL_DTYPES = {1: "uint8", 2: "uint16"}


def collate(table: pa.Table, pin: bool = False) -> Batch:
    """Return the rows of a table as a batch, padded at the far end with 0.

    The table has the columns of a shard plus ``number`` and ``epoch``; ``label`` and ``class_label`` may be absent.
    Samples of different types are promoted to one that holds all their values. ``pin`` places the tensors in
    page-locked memory, from which a GPU copies while it computes.
    """
    shapes = [tuple(shape) for shape in table["shape"].to_pylist()]
    dtypes = table["dtype"].to_pylist()
    names = set(table.column_names)
    classes = table["class_label"].combine_chunks().fill_null(-1) if "class_label" in names else None
    return Batch(
        voxels=_stack(table["voxels"], shapes, dtypes, pin),
        extents=np.array([shape[1:] for shape in shapes], dtype=np.int64),
        scale=_floats(table["scale"]),
        offset=_floats(table["offset"]),
        spacing_mm=np.array(table["spacing_mm"].to_pylist(), dtype=np.float32),
        sample_ids=tuple(table["sample_id"].to_pylist()),
        volumes=tuple(table["volume"].to_pylist()),
        numbers=table["number"].to_numpy(),
        epochs=table["epoch"].to_numpy(),
        labels=_labels(table, shapes, pin) if "label" in names else None,
        classes=None if classes is None else torch.tensor(classes.to_numpy(), dtype=torch.int64),
    )


def _labels(table: pa.Table, shapes: Sequence[tuple[int, ...]], pin: bool) -> Tensor:
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
    return _stack(column, sizes, dtypes, pin)


def _stack(column: pa.ChunkedArray, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], pin: bool) -> Tensor:
    """Copy raw bytes (little-endian, C order) into one padded tensor (B, *largest shape)."""
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    dtype = np.result_type(*set(dtypes)).name
    if dtype not in _TORCH_DTYPES:
        raise ValueError(f"voxels of type {dtype} in a batch; expected one of {', '.join(_TORCH_DTYPES)}")
    if pin:
        out = torch.empty((len(shapes), *largest), dtype=_TORCH_DTYPES[dtype], pin_memory=True)
    else:
        # numpy asks for huge pages, torch does not: filling fresh memory of this size is four times as fast.
        out = torch.from_numpy(np.empty((len(shapes), *largest), dtype=dtype))
    for row, value, shape, stored in zip(out.numpy(), column, shapes, dtypes, strict=True):
        sample = np.frombuffer(value.as_buffer(), dtype=np.dtype(stored).newbyteorder("<")).reshape(shape)
        row[tuple(slice(size) for size in shape)] = sample
        for axis, size in enumerate(shape):
            row[(slice(None),) * axis + (slice(size, None),)] = 0
    return out


def _floats(column: pa.ChunkedArray) -> Tensor:
    return torch.tensor(column.to_numpy(), dtype=torch.float32)
