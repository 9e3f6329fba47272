"""Rows become a batch with their own values, padded with 0, whatever their types and sizes."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.views.batch import Batch
from data.views.collate import BatchMemory, collate

DTYPES = ["uint8", "int16", "uint16", "float16", "float32"]


def rows(arrays, labels=None, classes=None, chunks=1):
    """Build the table that the feed hands over; ``arrays`` are (C, *S)."""
    n = len(arrays)
    columns = {
        "voxels": pa.array([a.tobytes() for a in arrays], pa.large_binary()),
        "dtype": [a.dtype.name for a in arrays],
        "shape": pa.array([a.shape for a in arrays], pa.list_(pa.int32())),
        "spacing_mm": pa.array([[2.5, 1.0, 0.5][-(a.ndim - 1) :] for a in arrays], pa.list_(pa.float32())),
        "sample_id": [f"s-{i}" for i in range(n)],
        "volume": [f"v-{i // 2}" for i in range(n)],
        "scale": [0.5 * i for i in range(n)],
        "offset": [-1.0] * n,
        "number": pa.array(range(40, 40 + n), pa.int64()),
        "epoch": pa.array([3] * n, pa.int64()),
        "row": pa.array(range(n), pa.int64()),
    }
    if labels is not None:
        values = [None if label is None else label.tobytes() for label in labels]
        columns["label"] = pa.array(values, pa.large_binary())
    if classes is not None:
        columns["classes"] = pa.array(classes, pa.list_(pa.int32()))
    table = pa.table(columns)
    cuts = np.linspace(0, n, chunks + 1).astype(int)
    return pa.concat_tables([table[a:b] for a, b in pairwise(cuts)])


def numbered(shape, dtype, start=1):
    return np.arange(start, start + int(np.prod(shape))).reshape(shape).astype(dtype)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(DTYPES),
    st.integers(2, 3).flatmap(lambda n: st.lists(st.tuples(*[st.integers(1, 4)] * n), min_size=1, max_size=5)),
    st.integers(1, 3),
)
def test_samples_keep_their_values_and_the_rest_is_zero(dtype, sizes, channels):
    arrays = [numbered((channels, *size), dtype, start=1 + i) for i, size in enumerate(sizes)]
    batch = collate(rows(arrays, chunks=min(2, len(arrays))))
    assert batch.voxels.dtype == getattr(torch, dtype)
    assert batch.voxels.shape == (len(sizes), channels, *np.max(sizes, axis=0))
    assert batch.extents.tolist() == [list(size) for size in sizes]
    for got, array, size in zip(batch.voxels.numpy().copy(), arrays, sizes, strict=True):
        inside = (slice(None), *(slice(s) for s in size))
        assert np.array_equal(got[inside], array)
        got[inside] = 0
        assert not got.any()


@pytest.mark.parametrize(
    ("first", "second", "promoted"),
    [
        ("uint8", "int16", torch.int16),
        ("uint8", "uint16", torch.uint16),
        ("int16", "uint16", torch.int32),
        ("int16", "float16", torch.float32),
    ],
)
def test_mixed_types_are_promoted_without_loss(first, second, promoted):
    arrays = [np.array([[[0, 200]]], first), np.array([[[1, 2000]]], second)]
    batch = collate(rows(arrays))
    assert batch.voxels.dtype == promoted
    assert batch.voxels.to(torch.float32).flatten().tolist() == [0, 200, 1, 2000]


def test_uint16_above_the_signed_range_survives_to_float():
    batch = collate(rows([np.array([[[65535, 40000]]], np.uint16)]))
    assert batch.voxels[:, :, :, 1:].to(torch.float32).item() == 40000
    assert batch.voxels.to(torch.float32).max().item() == 65535


def test_small_columns_arrive_with_their_types():
    batch = collate(rows([numbered((1, 2, 2, 2), "int16")] * 3, classes=[[4], None, [0]]))
    assert (batch.sample_ids, batch.volumes) == (("s-0", "s-1", "s-2"), ("v-0", "v-0", "v-1"))
    assert (batch.numbers.tolist(), batch.epochs.tolist()) == ([40, 41, 42], [3, 3, 3])
    assert batch.numbers.dtype == batch.epochs.dtype == batch.extents.dtype == np.int64
    assert torch.equal(batch.scale, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(batch.offset, torch.tensor([-1.0, -1.0, -1.0]))
    assert batch.spacing_mm.tolist() == [[2.5, 1.0, 0.5]] * 3
    assert torch.equal(batch.classes, torch.tensor([[4], [-1], [0]]))
    assert batch.labels is None


def test_classes_are_filled_up_to_as_many_as_the_sample_with_the_most_has():
    batch = collate(rows([numbered((1, 2, 2), "uint8")] * 5, classes=[[7, 1, 3], [], None, [2], [4, 0]], chunks=2))
    assert batch.classes.dtype == torch.int64
    assert batch.classes.tolist() == [[7, 1, 3], [-1, -1, -1], [-1, -1, -1], [2, -1, -1], [4, 0, -1]]
    none = collate(rows([numbered((1, 2, 2), "uint8")] * 2, classes=[[], None]))
    assert none.classes.tolist() == [[-1], [-1]]
    assert collate(rows([numbered((1, 2, 2), "uint8")])).classes is None


def test_labels_of_one_and_two_bytes_are_padded_like_voxels():
    arrays = [numbered((2, 2, 3), "int16"), numbered((2, 3, 1), "int16")]
    labels = [np.array([[1, 2, 3], [4, 5, 255]], np.uint8), np.array([[300], [7], [8]], np.uint16)]
    batch = collate(rows(arrays, labels=labels))
    assert batch.labels.dtype == torch.uint16
    assert batch.labels.to(torch.int64).tolist() == [
        [[1, 2, 3], [4, 5, 255], [0, 0, 0]],
        [[300, 0, 0], [7, 0, 0], [8, 0, 0]],
    ]


def test_the_batch_owns_its_memory():
    table = rows([numbered((1, 2, 2), "uint8")])
    collate(table).voxels.zero_()
    assert collate(table).voxels.flatten().tolist() == [1, 2, 3, 4]


def test_a_missing_label_is_an_error_with_a_remedy():
    arrays = [numbered((1, 2, 2), "uint8")] * 2
    with pytest.raises(
        ValueError, match=r"sample s-1: 1 of 1 in a batch of 2 without a label.*labelled samples only"
    ):
        collate(rows(arrays, labels=[arrays[0][0], None]))


def test_a_type_that_torch_cannot_hold_is_an_error():
    with pytest.raises(ValueError, match=r"voxels of type uint64 in a batch; expected one of uint8"):
        collate(rows([numbered((1, 2, 2), "uint64")]))


def places(batch: Batch) -> set[int]:
    return {tensor.data_ptr() for tensor in (batch.voxels, batch.labels) if tensor is not None}


def test_a_batch_that_is_handed_back_leaves_its_memory_to_the_next_and_no_other_does():
    memory, arrays = BatchMemory(), [numbered((1, 8, 8), "int16"), numbered((1, 6, 8), "int16")]
    table = rows(arrays, labels=[array[0].astype(np.uint8) for array in arrays])
    first, second = collate(table, memory), collate(table, memory)
    assert len(places(first) | places(second)) == 4
    memory.take_back(first)
    third = collate(table, memory)
    assert places(third) == places(first)
    assert torch.equal(third.voxels, second.voxels)
    assert torch.equal(third.labels, second.labels)
    assert len(places(collate(table, memory)) | places(third) | places(second)) == 6


def test_memory_is_used_for_tensors_of_other_shapes_and_types():
    memory = BatchMemory()
    first = collate(rows([numbered((1, 4, 4), "int16")]), memory)
    memory.take_back(first)
    second = memory.empty((2, 4), torch.uint16)
    assert (second.data_ptr(), second.shape, second.dtype) == (first.voxels.data_ptr(), (2, 4), torch.uint16)


def test_memory_that_is_too_small_is_given_up():
    memory = BatchMemory()
    small = collate(rows([numbered((1, 2, 2), "uint8")]), memory)
    memory.take_back(small)
    large = collate(rows([numbered((1, 20, 20), "uint8")]), memory)
    memory.take_back(large)
    assert memory.empty((4,), torch.uint8).data_ptr() == large.voxels.data_ptr()
    assert memory.empty((4,), torch.uint8).data_ptr() not in (small.voxels.data_ptr(), large.voxels.data_ptr())
