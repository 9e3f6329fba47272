"""Samples of any size are resized to one size and cut, and the part of the stored sample that is seen is known."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.views.batch import Batch
from methods.parts.fitting import Fitting, resize
from tests.batches import eight_bit_batch, random_batch


def fitting(size: tuple[int, ...], resize_to: tuple[int | None, ...] | None = None) -> Fitting:
    return Fitting.of(size, resize_to, len(size), "task")


def ramp(size: tuple[int, ...]) -> Batch:
    """One sample whose voxels count along the last axis."""
    voxels = torch.arange(size[-1], dtype=torch.uint8).expand(1, 1, *size).clone()
    return eight_bit_batch(voxels, [size], ("a",))


def test_enlarging_is_plain_linear_interpolation_in_2d_and_3d() -> None:
    for size, wanted, mode in (((5, 6), (9, 7), "bilinear"), ((3, 5, 4), (6, 5, 11), "trilinear")):
        sample = torch.randn(2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float()
        expected = F.interpolate(sample[None], wanted, mode=mode)[0]
        torch.testing.assert_close(resize(sample, wanted), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 48), (32, 64, 48)])
def test_shrinking_averages_what_is_replaced_and_keeps_the_mean(size: tuple[int, ...]) -> None:
    sample = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    small = resize(sample, tuple(length // 8 for length in size))
    # Noise that is averaged over 8 voxels along each axis, weighted by a triangle of twice that length, shrinks to
    # (2 / 3 / 8) ** (1 / 2) of its deviation per axis; taking every eighth voxel would leave it as it was.
    assert float(small.std()) == pytest.approx((2 / 3 / 8) ** (len(size) / 2), rel=0.3)
    assert float(resize(torch.full((1, *size), 3.0), (8,) * len(size)).std()) == pytest.approx(0, abs=1e-5)


def test_a_sample_of_the_wanted_size_is_left_as_it_is() -> None:
    batch = random_batch([(8, 12)])
    images, boxes = fitting((8, 12)).apply(batch, None)
    assert torch.equal(images, batch.voxels * torch.tensor(1 / 255))
    assert boxes.tolist() == [[[0, 0], [8, 12]]]


def test_padding_of_the_batch_is_not_seen() -> None:
    batch = random_batch([(8, 10), (6, 6)])
    second = {name: value[1:] for name, value in vars(batch).items() if value is not None}
    alone = Batch(**{**second, "voxels": second["voxels"][..., :6, :6]})
    together, apart = fitting((12, 12)).apply(batch, None)[0], fitting((12, 12)).apply(alone, None)[0]
    assert torch.equal(together[1], apart[0])


def test_without_randomness_the_middle_is_cut() -> None:
    images, boxes = fitting((4, 6), (None, 12)).apply(ramp((8, 12)), None)
    assert boxes.tolist() == [[[2, 3], [6, 9]]]
    torch.testing.assert_close(images[0, 0] * 255, torch.arange(3.0, 9.0).expand(4, 6))


def test_what_is_cut_lies_anywhere_and_all_places_are_met_alike() -> None:
    batch = random_batch([(8, 12)] * 600)
    images, boxes = fitting((4, 12), (None, None)).apply(batch, batch.rng(0))
    lows = boxes[:, 0, 0]
    assert np.bincount(lows, minlength=5) == pytest.approx(120, abs=40)
    assert set(boxes[:, 0, 1].tolist()) == {0}
    for image, voxels, low in zip(images, batch.voxels, lows.tolist(), strict=True):
        assert torch.equal(image, voxels[:, low : low + 4] * torch.tensor(1 / 255))


def test_boxes_are_told_in_voxels_of_the_stored_sample() -> None:
    batch = ramp((16, 40))
    images, boxes = fitting((8, 10), (8, 20)).apply(batch, batch.rng(3))
    (top, left), (bottom, right) = boxes[0].tolist()
    assert (top, bottom, right - left) == (0, 16, 20)
    # Half as many voxels: each is the mean of two neighbours, up to the smoothing across its border.
    torch.testing.assert_close(images[0, 0, 4, 2:-2] * 255, torch.arange(left + 4.5, right - 4, 2), rtol=0, atol=0.3)


def test_a_sample_that_is_shorter_lies_in_the_middle_of_zeros() -> None:
    for rng_seed in (None, 0):
        batch = ramp((3, 6))
        batch = Batch(**{**vars(batch), "offset": torch.tensor([5.0])})
        images, boxes = fitting((7, 6), (None, None)).apply(batch, None if rng_seed is None else batch.rng(rng_seed))
        assert boxes.tolist() == [[[0, 0], [3, 6]]]
        assert images[0, 0, :2].abs().max() == images[0, 0, 5:].abs().max() == 0
        torch.testing.assert_close(images[0, 0, 2:5], (torch.arange(6.0) / 255 + 5).expand(3, 6))


def test_volumes_keep_their_slices_where_the_depth_is_not_resized() -> None:
    batch = random_batch([(5, 8, 8), (3, 6, 8)])
    images, boxes = fitting((4, 8, 8), (None, 8, 8)).apply(batch, None)
    assert torch.equal(images[0, 0], batch.voxels[0, 0, 0:4] * torch.tensor(1 / 255))
    assert images[1, 0, 0].abs().max() == 0
    assert boxes[:, :, 0].tolist() == [[0, 4], [0, 3]]


def test_sizes_that_contradict_each_other_are_refused_in_words() -> None:
    with pytest.raises(
        ValueError, match=r"task.resize_to \(20, 24\): 20 is less than the 24 .*; resize to at least 24"
    ):
        fitting((24, 24), (20, 24))
    with pytest.raises(ValueError, match=r"task.size \(24, 24\) has 2 axes, the encoder has 3; give one number"):
        Fitting.of((24, 24), None, 3, "task")
    with pytest.raises(ValueError, match=r"task.resize_to \(24, 24\) has 2 axes, the encoder has 3; give one number"):
        Fitting.of(24, (24, 24), 3, "task")
