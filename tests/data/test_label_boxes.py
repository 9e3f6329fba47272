"""Boxes of label maps: those of a search that walks from voxel to voxel, per plane or over the volume."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.box_rule import LabelBoxes
from data.boxes import Boxes
from data.label_boxes import label_boxes
from data.recipes import Recipe
from data.recipes.apply import apply
from data.scan import Scan

Box = tuple[int, tuple[int, ...], tuple[int, ...]]


def walked(label: np.ndarray, across_planes: bool, min_voxels: int) -> set[Box]:
    """Return value, low and high corner of each component, found by walking to all neighbours of equal value."""
    steps = [step for step in product((-1, 0, 1), repeat=label.ndim) if any(step)]
    if not across_planes and label.ndim == 3:
        steps = [step for step in steps if step[0] == 0]
    left = {tuple(int(i) for i in place) for place in np.argwhere(label > 0)}
    found: set[Box] = set()
    while left:
        start = left.pop()
        component, todo = [start], [start]
        while todo:
            at = todo.pop()
            for step in steps:
                near = tuple(a + b for a, b in zip(at, step, strict=True))
                if near in left and label[near] == label[start]:
                    left.remove(near)
                    component.append(near)
                    todo.append(near)
        if len(component) >= min_voxels:
            places = np.array(component)
            low, high = places.min(axis=0), places.max(axis=0) + 1
            found.add((int(label[start]), tuple(low.tolist()), tuple(high.tolist())))
    return found


def as_set(boxes: Boxes) -> set[Box]:
    pairs = zip(boxes.classes.tolist(), boxes.corners.tolist(), strict=True)
    return {(value, tuple(low), tuple(high)) for value, (low, high) in pairs}


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 6, 7), (9, 8), (1, 5, 5)]), st.integers(1, 6))
def test_boxes_are_those_of_walked_components(seed: int, size: tuple[int, ...], min_voxels: int) -> None:
    rng = np.random.default_rng(seed)
    label = (rng.integers(1, 3, size) * (rng.random(size) < rng.uniform(0.1, 0.6))).astype(np.uint8)
    for within in ("planes", "volumes"):
        found = label_boxes(label, LabelBoxes(within, min_voxels))
        assert as_set(found) == walked(label, within == "volumes", min_voxels)
        if within == "planes" and len(size) == 3:
            assert (found.corners[:, 1, 0] - found.corners[:, 0, 0] == 1).all()


def test_voxels_that_touch_at_a_corner_are_one_component_and_values_never_join() -> None:
    label = np.zeros((2, 4, 4), np.uint16)
    label[0, 0, 0] = label[0, 1, 1] = label[1, 2, 2] = 300
    label[0, 1, 2] = 7
    planes = label_boxes(label, LabelBoxes("planes"))
    assert as_set(planes) == {
        (7, (0, 1, 2), (1, 2, 3)),
        (300, (0, 0, 0), (1, 2, 2)),
        (300, (1, 2, 2), (2, 3, 3)),
    }
    volumes = label_boxes(label, LabelBoxes("volumes", min_voxels=2))
    assert as_set(volumes) == {(300, (0, 0, 0), (2, 3, 3))}


def test_only_the_chosen_values_become_boxes() -> None:
    label = np.zeros((2, 4, 4), np.uint8)
    label[0, 0, 0], label[0, 2, 2], label[1, 3, 3] = 1, 2, 5
    found = label_boxes(label, LabelBoxes("planes", values=(5, 1, 7)))
    assert as_set(found) == {(1, (0, 0, 0), (1, 1, 1)), (5, (1, 3, 3), (2, 4, 4))}


def test_a_label_map_without_labels_has_no_findings() -> None:
    boxes = label_boxes(np.zeros((2, 3, 4), np.uint8), LabelBoxes("volumes"))
    assert boxes.corners.shape == (0, 2, 3)


SLICES = Recipe(
    name="s", kind="slices", window=(0, 1), window_kind="value", spacing_mm=(1.0, 1.0, 1.0), pad_to=(1, 9, 9)
)


@pytest.mark.parametrize("kind", ["volume", "slices"])
@pytest.mark.parametrize("within", ["planes", "volumes"])
def test_boxes_are_made_of_the_label_map_as_it_is_stored(kind: str, within: str) -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((5, 7, 6), np.uint8)
    label[1:4, 2:5, 3:5] = 2
    label[3, 5, 5] = 1
    affine = np.diag([2.0, -1.5, -1.0, 1.0])[[2, 1, 0, 3]]
    scan = Scan(rng.random((1, 5, 7, 6), np.float32), (2.0, 1.5, 1.0), "", affine, label=label)
    stored = apply(SLICES.with_fields(kind=kind), scan, LabelBoxes(within))
    for one in stored:
        assert one.label is not None
        assert one.boxes is not None
        if kind == "volume" or within == "planes":
            assert as_set(one.boxes) == walked(one.label, within == "volumes", 1)
    if (kind, within) == ("slices", "volumes"):  # each plane has the outline of the whole component
        (volume,) = apply(SLICES.with_fields(kind="volume"), scan, LabelBoxes("volumes"))
        assert volume.boxes is not None
        for depth, one in enumerate(stored):
            assert one.boxes is not None
            assert one.boxes.corners.tolist() == volume.boxes.of_plane(depth).corners.tolist()
    assert any(len(one.boxes or ()) for one in stored)
    plain = apply(SLICES.with_fields(kind=kind), scan)
    assert all(one.boxes is None for one in plain)
