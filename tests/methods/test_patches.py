"""Patches: each lies anywhere in its own cell, with its gap; the cut voxels are the stored ones, at one size."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.views.rng import SampleRng
from methods.parts.patches import Patches
from tests.batches import random_batch


def drawn(patches: Patches, extent: tuple[int, ...], count: int = 50) -> np.ndarray:
    return patches.draw(np.array([extent] * count), SampleRng(np.arange(count, dtype=np.uint64)))


@settings(max_examples=60, deadline=None)
@given(
    grid=st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple),
    spare=st.tuples(*[st.integers(0, 9)] * 3),
    jitter=st.integers(0, 3),
    gap=st.integers(0, 3),
    span=st.sampled_from([1.0, 0.95, 0.8]),
)
def test_patches_stay_inside_their_sample_and_keep_their_gap_from_all_others(grid, spare, jitter, gap, span):
    extent = tuple(8 * g + s for g, s in zip(grid, spare, strict=False))
    patches = Patches(grid=grid, jitter=jitter, gap=min(gap, jitter), span=span)
    patches.check_extent(extent)
    boxes = drawn(patches, extent, 3)
    assert boxes.shape == (3, np.prod(grid), 2, len(grid))
    assert boxes.min() >= 0
    assert (boxes[:, :, 1] <= extent).all()
    assert len(np.unique(boxes[:, :, 1] - boxes[:, :, 0], axis=1)[0]) == 1
    cells = list(itertools.product(*(range(g) for g in grid)))
    for (i, first), (j, second) in itertools.permutations(enumerate(cells), 2):
        for axis in range(len(grid)):
            if first[axis] < second[axis]:
                assert (boxes[:, j, 0, axis] - boxes[:, i, 1, axis] >= patches.gap).all()


def test_the_released_grid_of_128_voxels_has_cells_of_42_and_patches_of_39():
    boxes = drawn(Patches(grid=3, jitter=3, gap=0), (128, 128, 128), 400)
    assert (boxes[:, :, 1] - boxes[:, :, 0] == 39).all()
    offsets = boxes[:, :, 0] - 42 * np.indices((3, 3, 3)).reshape(3, -1).T
    assert np.unique(offsets).tolist() == [0, 1, 2, 3, 4, 5]  # 2 voxels are left over, and a patch moves by 3
    relative = offsets - offsets.min(axis=1, keepdims=True)
    shares = np.bincount(relative[:, 1:].ravel()) / relative[:, 1:].size
    np.testing.assert_allclose(shares, 0.25, rtol=0, atol=0.02)


def test_cells_that_overlap_by_half_begin_half_a_cell_apart():
    boxes = drawn(Patches(grid=5, jitter=0, gap=0, overlap=0.5), (96, 96), 1)[0]
    assert np.unique(boxes[:, 0]).tolist() == [0, 16, 32, 48, 64]
    assert np.unique(boxes[:, 1]).tolist() == [32, 48, 64, 80, 96]


def test_a_grid_that_spans_a_part_of_the_sample_lies_anywhere_in_it():
    boxes = drawn(Patches(grid=2, jitter=0, gap=0, span=0.8), (10, 10), 300)
    assert np.unique(boxes[:, 0, 0], axis=0).tolist() == [[h, w] for h in range(3) for w in range(3)]


def test_patches_of_the_wanted_size_are_cut_as_they_are_stored():
    patches = Patches(grid=2, size=5, jitter=1, gap=1)
    batch = random_batch([(12, 13), (13, 12)])
    boxes = patches.draw(batch.extents, batch.rng(0))
    images = patches.cut(batch, boxes, (5, 5))
    for v, b in np.ndindex(images.shape[:2]):
        (h0, w0), (h1, w1) = boxes[b, v]
        torch.testing.assert_close(images[v, b], batch.voxels[b, :, h0:h1, w0:w1].float() / 255, rtol=0, atol=1e-7)


def test_normalised_patches_have_mean_0_and_deviation_1_and_even_ones_stay_even():
    patches = Patches(grid=2, size=6, jitter=0, gap=0, normalise=True)
    batch = random_batch([(12, 12)] * 2)
    batch.voxels[0] = 77
    images = patches.cut(batch, patches.draw(batch.extents, batch.rng(0)), (6, 6)).flatten(3)
    torch.testing.assert_close(images.mean(3), torch.zeros(4, 2, 1), rtol=0, atol=1e-2)
    torch.testing.assert_close(images[:, 1].std(2, correction=0), torch.ones(4, 1), rtol=0, atol=1e-5)
    assert images[:, 0].abs().max() < 0.1


def test_grids_that_leave_no_patch_are_refused():
    with pytest.raises(
        ValueError, match=r"jitter 3: the cells of samples of size \(40, 13\) are 4 voxels long along W \(13 voxels\)"
    ):
        Patches(grid=3, jitter=3).check_extent((40, 13))
    with pytest.raises(ValidationError, match=r"gap 2 exceeds jitter 1: .*raise jitter"):
        Patches(jitter=1, gap=2)
    with pytest.raises(ValueError, match=r"patches\.grid \(3, 3\) has 2 axes, the encoder has 3"):
        Patches(grid=(3, 3)).gridded(3)
