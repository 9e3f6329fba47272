"""Crops show the share of a sample that was drawn, each resized and augmented as on its own."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from data.views.rng import SampleRng
from data.views.transforms import ColourJitter
from methods.parts.multi_crop import AreaCrops, MultiCrop
from methods.parts.sampled_crops import sample_crops
from tests.batches import random_batch

EXTENTS = {2: (90, 200), 3: (40, 96, 120)}


def streams(count: int, seed: int = 0) -> SampleRng:
    return SampleRng.for_samples(seed, [0] * count, [str(i) for i in range(count)])


def multi_crop(dims: int, **changes: object) -> MultiCrop:
    fields = {
        "large": AreaCrops(num=2, area=(0.14, 1), size=12),
        "small": AreaCrops(num=3, area=(0.05, 0.14), size=8),
        "augment": Augmentation(),
        "spatial_dims": dims,
    }
    return MultiCrop(**{**fields, **changes})


@pytest.mark.parametrize("area", [(0.05, 0.14), (0.14, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_box_shows_its_share_of_a_sample_and_lies_inside(dims, area):
    extents = np.array([EXTENTS[dims]] * 500)
    boxes = AreaCrops(num=1, area=area).draw(extents, (32,) * dims, streams(500))
    assert boxes.min() >= 0
    assert (boxes[:, 1] <= extents).all()
    shares = (boxes[:, 1] - boxes[:, 0]).prod(axis=1) / np.prod(EXTENTS[dims])
    rounding = 1.06
    assert shares.min() > area[0] / rounding
    assert shares.max() < min(1.0, area[1] * rounding) + 1e-9
    expected = np.linspace(*area, 5)
    assert np.quantile(shares, np.linspace(0, 1, 5)) == pytest.approx(expected, abs=0.07 * (area[1] - area[0]) + 0.01)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_box_has_nearly_the_shape_of_its_view_where_it_fits(dims):
    extents = np.full((2000, dims), 400)
    boxes = AreaCrops(num=1, area=(0.05, 0.3)).draw(extents, (60, 40, 20)[-dims:], streams(2000))
    sides = (boxes[:, 1] - boxes[:, 0]) / (60, 40, 20)[-dims:]
    wide = np.log(sides[:, -1] / sides[:, -2])
    assert np.abs(wide).max() < np.log(4 / 3) + 0.03
    assert np.quantile(wide, [0.25, 0.5, 0.75]) == pytest.approx(np.log(4 / 3) * np.array([-0.5, 0, 0.5]), abs=0.03)
    if dims == 3:
        deep = np.log(sides[:, 0] / np.sqrt(sides[:, 1] * sides[:, 2]))
        assert np.quantile(deep, [0.01, 0.99]) == pytest.approx(np.log(4 / 3) * np.array([-0.98, 0.98]), abs=0.03)
        assert abs(np.corrcoef(wide, deep)[0, 1]) < 0.1


def test_boxes_reach_every_border():
    extents = np.full((2000, 2), 20)
    boxes = AreaCrops(num=1, area=(0.2, 0.4)).draw(extents, (8, 8), streams(2000))
    assert boxes[:, 0].min(axis=0).tolist() == [0, 0]
    assert boxes[:, 1].max(axis=0).tolist() == [20, 20]


@pytest.mark.parametrize("dims", [2, 3])
def test_crops_equal_boxes_that_are_cut_and_resized_one_by_one(dims):
    batch = random_batch([(9, 12, 15)[-dims:], (10, 8, 20)[-dims:]])
    kind, size = AreaCrops(num=2, area=(0.02, 1.0)), (5, 6, 7)[-dims:]
    boxes = np.stack([kind.draw(batch.extents, size, streams(2, seed)) for seed in range(8)])
    found = sample_crops(batch, boxes, size)
    for view, sample in np.ndindex(boxes.shape[:2]):
        low, high = boxes[view, sample]
        inside = (sample, slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
        cut = batch.voxels[inside][None].double() / 255
        expected = F.interpolate(cut, size, mode="bilinear" if dims == 2 else "trilinear")
        torch.testing.assert_close(found[view, sample], expected[0].float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_large_crops_come_before_small_ones_and_each_is_augmented_on_its_own(dims):
    batch = random_batch([EXTENTS[dims]] * 3)
    plain = multi_crop(dims).views(batch, batch.rng(0))
    assert [tuple(image.shape[2:]) for image in plain.images] == [(12,) * dims] * 2 + [(8,) * dims] * 3
    for number, (image, boxes) in enumerate(zip(plain.images, plain.boxes, strict=True)):
        torch.testing.assert_close(image, sample_crops(batch, boxes[None], image.shape[2:])[0])
        assert all(not np.array_equal(boxes, other) for other in plain.boxes[number + 1 :])
    coloured = multi_crop(dims, augment=Augmentation(transforms=(ColourJitter(clip=None),))).views(
        batch, batch.rng(0)
    )
    gains = [(ours.std((1, *range(2, dims + 2))) / before.std((1, *range(2, dims + 2)))).tolist()
             for ours, before in zip(coloured.images, plain.images, strict=True)]  # fmt: skip
    assert len({round(gain, 4) for view in gains for gain in view}) == 15


def test_sizes_have_defaults_for_images_and_for_volumes():
    kinds = {"large": AreaCrops(num=2, area=(0.14, 1)), "small": AreaCrops(num=6, area=(0.05, 0.14))}
    assert [size for _, _, size in multi_crop(2, **kinds).kinds()] == [(224, 224), (96, 96)]
    assert [size for _, _, size in multi_crop(3, **kinds).kinds()] == [(96,) * 3, (64,) * 3]
    with pytest.raises(ValueError, match=r"small_crops\.size \(96, 96\): 96 is not a multiple of .*64; use 128"):
        multi_crop(2, small=kinds["small"], large=AreaCrops(num=2, area=(1, 1), size=64)).check_encoder((64, 64))
    with pytest.raises(ValueError, match=r"large_crops\.size \(8, 8\) has 2 axes, the encoder has 3"):
        multi_crop(3, large=AreaCrops(num=2, area=(1, 1), size=(8, 8))).kinds()


def test_an_area_is_a_share_of_the_sample():
    for area in ((0, 1), (0.5, 0.4), (0.5, 1.1)):
        with pytest.raises(ValidationError, match=r"expected shares of the sample, 0 < low <= high <= 1"):
            AreaCrops(num=1, area=area)


def test_the_crops_of_a_sample_go_through_different_transforms():
    batch = random_batch([EXTENTS[2]] * 4)
    one_of = (ColourJitter(clip=None), *(ColourJitter(brightness=0, contrast=0, clip=None) for _ in range(4)))
    plain, found = (
        multi_crop(2, augment=Augmentation(one_of=each)).views(batch, batch.rng(0)).images for each in ((), one_of)
    )
    changed = [
        [not torch.equal(a, b) for a, b in zip(*views, strict=True)] for views in zip(plain, found, strict=True)
    ]
    assert np.sum(changed, axis=0).tolist() == [1] * 4, "one of five crops goes through the first of five"
