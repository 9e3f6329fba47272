"""Grids: overlaps are counted voxels, crops lie anywhere inside, misfits are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.views.rng import SampleRng
from methods.parts.grid import check_tiles, overlap_shares, tiles, uniform_tiles
from tests.references.voco import count_overlaps

grids = st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(grid=grids, lengths=st.tuples(*[st.integers(1, 4)] * 3), seed=st.integers(0, 2**32))
def test_overlaps_are_counted_voxels_sum_to_one_and_touch_at_most_two_bases_per_axis(grid, lengths, seed):
    extent = tuple(g * length for g, length in zip(grid, lengths, strict=False))
    crops = uniform_tiles(np.array([extent] * 2), grid, 3, SampleRng(np.array([seed, seed + 1], np.uint64)))
    shares = overlap_shares(crops, tiles(np.array([extent] * 2), grid))
    for sample, number in np.ndindex(2, 3):
        counted = count_overlaps(crops[sample, number], extent, grid)
        np.testing.assert_allclose(shares[sample, number], counted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shares.sum(axis=2), 1, rtol=0, atol=1e-12)
    assert (shares > 0).sum(axis=2).max() <= 2 ** sum(g > 1 for g in grid)


def test_the_papers_grid_leaves_at_most_four_positives_whatever_the_crop():
    extents = np.array([[64, 256, 256]] * 50)
    shares = overlap_shares(
        uniform_tiles(extents, (1, 4, 4), 20, SampleRng(np.arange(50))), tiles(extents, (1, 4, 4))
    )
    assert shares.shape == (50, 20, 16)
    assert (shares > 0).sum(axis=2).max() == 4


def test_a_crop_that_is_a_base_is_labelled_with_that_base_alone():
    bases = tiles(np.array([[8, 12, 16]]), (2, 3, 4))
    np.testing.assert_array_equal(overlap_shares(bases, bases)[0], np.eye(24))


def test_crops_may_lie_anywhere_inside_the_sample_and_nowhere_else():
    crops = uniform_tiles(np.array([[6, 9]]), (2, 3), 2000, SampleRng(np.array([5])))[0]
    low, counts = np.unique(crops[:, 0], axis=0, return_counts=True)
    assert low.tolist() == [[h, w] for h in range(4) for w in range(7)]
    assert counts.min() > 0.6 * 2000 / 28
    assert np.unique(crops[:, 1] - crops[:, 0], axis=0).tolist() == [[3, 3]]


def test_a_grid_of_other_axes_than_the_samples_is_refused():
    with pytest.raises(ValueError, match=r"grid \(1, 4, 5\) has 3 axes, samples of size \(256, 256\) have 2"):
        check_tiles((1, 4, 5), (256, 256))
