"""Organ-centred crops: where their middle falls, how often, and what is cut out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.views.rng import SampleRng
from methods.downstream.crops import cut_padded, draw_centred_boxes

MANY = 4000


def streams(count: int, epoch: int = 0) -> SampleRng:
    return SampleRng.for_samples(3, [epoch] * count, [f"s-{i}" for i in range(count)])


def repeated(classes: torch.Tensor, count: int = MANY) -> tuple[torch.Tensor, np.ndarray]:
    """Return one label map many times over, and its extents."""
    return classes.expand(count, *classes.shape).contiguous(), np.tile(np.array(classes.shape), (count, 1))


def middles(classes: torch.Tensor, organ_prob: float, centre: str = "voxel", size: int = 3) -> np.ndarray:
    """Return the class at the middle of many boxes; the labels must lie away from the border."""
    many, extents = repeated(classes)
    boxes = draw_centred_boxes(many, extents, (size,) * classes.ndim, organ_prob, centre, streams(MANY))
    return classes.numpy()[tuple((boxes[:, 0] + size // 2).T)]


def two_organs() -> torch.Tensor:
    """A large organ of 36 pixels and a small one of 4, away from the border."""
    classes = torch.zeros(20, 24, dtype=torch.int16)
    classes[4:10, 4:10] = 1
    classes[14:16, 14:16] = 2
    return classes


def test_half_of_the_crops_have_a_labelled_middle() -> None:
    share = (middles(two_organs(), organ_prob=0.5) > 0).mean()
    assert share == pytest.approx(0.5, abs=4 * 0.5 / MANY**0.5)


def test_by_voxel_organs_are_met_by_their_size_and_by_label_alike() -> None:
    by_voxel, by_label = (middles(two_organs(), 1.0, centre) for centre in ("voxel", "label"))
    assert set(by_voxel) == set(by_label) == {1, 2}
    assert (by_voxel == 2).mean() == pytest.approx(0.1, abs=4 * 0.3 / MANY**0.5)
    assert (by_label == 2).mean() == pytest.approx(0.5, abs=4 * 0.5 / MANY**0.5)


def test_every_labelled_voxel_is_a_middle_equally_often() -> None:
    many, extents = repeated(two_organs())
    boxes = draw_centred_boxes(many, extents, (3, 3), 1.0, "voxel", streams(MANY))
    _, counts = np.unique(boxes[:, 0], axis=0, return_counts=True)
    expected = MANY / 40
    assert len(counts) == 40
    assert ((counts - expected) ** 2 / expected).sum() < 73  # chi-square, 39 degrees of freedom, p = 0.001


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(7, 9), (4, 6, 8)]), st.booleans())
def test_boxes_stay_inside_their_sample_unless_it_is_smaller(seed: int, size: tuple[int, ...], label: bool) -> None:
    rng = np.random.default_rng(seed)
    extents = rng.integers(3, 14, (5, len(size)))
    classes = np.zeros((5, *extents.max(0)), dtype=np.int64)
    for sample, extent in zip(classes, extents, strict=True):
        inside = tuple(slice(0, int(e)) for e in extent)
        sample[inside] = rng.integers(0, 4, extent) * (rng.random(extent) < 0.3)
    centre = "label" if label else "voxel"
    boxes = draw_centred_boxes(torch.from_numpy(classes), extents, size, 0.5, centre, streams(5, epoch=seed))
    np.testing.assert_array_equal(boxes[:, 1] - boxes[:, 0], np.tile(size, (5, 1)))
    assert (boxes[:, 0] >= 0).all()
    larger = extents >= size
    assert (boxes[:, 1] <= extents)[larger].all()
    assert (boxes[:, 0][~larger] == 0).all()


def test_a_sample_without_labels_gets_crops_of_its_background_only_inside_it() -> None:
    classes = torch.zeros(200, 30, 30, dtype=torch.int16)
    extents = np.tile([10, 12], (200, 1))
    boxes = draw_centred_boxes(classes, extents, (4, 4), 1.0, "label", streams(200))
    assert (boxes[:, 1] <= extents).all()
    assert len(np.unique(boxes[:, 0], axis=0)) > 50


def test_a_sample_that_is_all_organ_gets_crops_of_it() -> None:
    classes = torch.ones(50, 9, 9, dtype=torch.int16)
    boxes = draw_centred_boxes(classes, np.tile([9, 9], (50, 1)), (3, 3), 0.0, "voxel", streams(50))
    assert ((boxes[:, 0] >= 0) & (boxes[:, 1] <= 9)).all()


def test_boxes_do_not_depend_on_how_samples_are_batched() -> None:
    many, extents = repeated(two_organs(), 6)
    rng = streams(6)
    together = draw_centred_boxes(many, extents, (5, 5), 0.5, "label", rng)
    alone = [
        draw_centred_boxes(many[i : i + 1], extents[i : i + 1], (5, 5), 0.5, "label", rng.take(np.array([i])))
        for i in range(6)
    ]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_cut_returns_the_voxels_of_the_box_and_zeros_beyond_the_sample() -> None:
    image = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5) + 1
    boxes = np.array([[[1, 2], [4, 5]], [[0, 0], [3, 3]]])
    out = cut_padded(image, boxes, np.array([[4, 5], [2, 5]]))
    torch.testing.assert_close(out[0], image[0, :, 1:4, 2:5])
    torch.testing.assert_close(out[1, :, :2], image[1, :, :2, :3])
    assert out[1, :, 2].eq(0).all()


def test_cut_label_maps_keep_their_integers() -> None:
    classes = torch.arange(2 * 6 * 6, dtype=torch.int16).reshape(2, 6, 6)
    out = cut_padded(classes, np.array([[[1, 1], [3, 4]]] * 2), np.array([[6, 6]] * 2))
    assert out.dtype == torch.int16
    torch.testing.assert_close(out, classes[:, 1:3, 1:4])
