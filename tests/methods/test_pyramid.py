"""Pyramids: the known contexts of the paper's grid, and no context that holds a voxel of its target."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.views.rng import SampleRng
from methods.parts.patches import Patches
from methods.parts.pyramid import Pyramid
from tests.references import cpc as reference

THE_PAPERS = Pyramid((4, 4, 4), levels=None, skip_rows=0, border="mirror")


def test_a_column_inside_the_papers_grid_sees_itself_and_the_nine_patches_above():
    assert THE_PAPERS.context_of((1, 2)) == [
        *((0, y, z) for y in (0, 1, 2) for z in (1, 2, 3)),
        (1, 1, 2),
    ]
    assert THE_PAPERS.predicted_of((1, 2)) == [(2, 1, 2), (3, 1, 2)]


def test_a_column_in_the_corner_of_the_papers_grid_sees_its_neighbours_mirrored():
    assert THE_PAPERS.context_of((0, 3)) == [
        *((0, y, z) for y in (1, 0, 1) for z in (2, 3, 2)),
        (1, 0, 3),
    ]
    assert THE_PAPERS.contexts().shape == (16, 10)
    assert THE_PAPERS.predicted().shape == (16, 2)
    assert THE_PAPERS.contexts()[3].tolist() == [6, 7, 6, 2, 3, 2, 6, 7, 6, 19]


@pytest.mark.parametrize("grid", [(4, 4, 4), (5, 3, 2), (6, 5, 3), (8, 4, 4), (5, 5), (7, 1), (4, 1, 2)])
def test_contexts_equal_the_reference(grid):
    pyramid = Pyramid(grid, levels=None, skip_rows=0, border="mirror")
    levels = grid[0] // 2 - 1
    for column in pyramid.columns:
        assert pyramid.context_of(column) == reference.context(column, grid)
        sizes = [(2 * k + 1) ** (len(grid) - 1) for k in range(1, levels + 1)]
        assert len(pyramid.context_of(column)) == 1 + sum(sizes)


def test_beyond_a_zero_border_a_context_has_the_index_after_the_last():
    pyramid = Pyramid((5, 5), levels=None, skip_rows=1, border="zero")
    assert pyramid.contexts()[0].tolist() == [25, 0, 1, 5]
    assert pyramid.contexts()[2].tolist() == [1, 2, 3, 7]
    assert pyramid.predicted()[2].tolist() == [17, 22]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    grid=st.lists(st.integers(1, 7), min_size=2, max_size=3).map(tuple),
    levels=st.sampled_from([None, 1, 2, 3]),
    skip_rows=st.integers(0, 2),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    border=st.sampled_from(["mirror", "zero"]),
    spare=st.integers(0, 6),
)
def test_no_admitted_context_holds_a_voxel_of_what_is_to_be_predicted(
    grid, levels, skip_rows, overlap, border, spare
):
    pyramid = Pyramid(grid, levels, skip_rows, border)
    try:
        pyramid.check(overlap)
    except ValueError:
        return
    extent = np.array([[8 * length + spare for length in grid]])
    patches = Patches(grid=grid, jitter=1, gap=0, overlap=overlap)
    boxes = patches.draw(extent, SampleRng(np.array([spare], np.uint64)))[0]
    for seen, sought in zip(pyramid.contexts(), pyramid.predicted(), strict=True):
        for one, other in itertools.product(boxes[seen[seen < len(boxes)]], boxes[sought]):
            assert (np.minimum(one[1], other[1]) <= np.maximum(one[0], other[0])).any()


@pytest.mark.parametrize("rows", [2, 3])
def test_two_or_three_rows_are_refused_because_the_mirror_shows_what_is_below(rows):
    with pytest.raises(ValueError, match=r"grid \(\d, 4, 4\): the context of column \(0, 0\) contains .*4 rows or"):
        Pyramid((rows, 4, 4), levels=None, skip_rows=0, border="mirror").check(0.0)


@pytest.mark.parametrize("rows", [4, 5, 6])
def test_four_rows_or_more_are_admitted(rows):
    Pyramid((rows, 4, 4), levels=None, skip_rows=0, border="mirror").check(0.0)


def test_the_row_below_a_context_is_refused_where_patches_overlap():
    with pytest.raises(ValueError, match=r"patch \(1, 0\) shares voxels with \(2, 0\).*more method\.skip_rows"):
        Pyramid((5, 5), levels=None, skip_rows=0, border="zero").check(0.5)
    Pyramid((5, 5), levels=None, skip_rows=1, border="zero").check(0.5)


def test_a_grid_with_nothing_to_predict_or_to_tell_apart_is_refused():
    with pytest.raises(ValueError, match=r"skip_rows 2 leaves 4 columns and 0 rows to predict"):
        Pyramid((4, 4), levels=None, skip_rows=2, border="mirror").check(0.0)
    with pytest.raises(ValueError, match=r"leaves 1 columns and 2 rows to predict; give two columns"):
        Pyramid((4, 1, 1), levels=None, skip_rows=0, border="mirror").check(0.0)
