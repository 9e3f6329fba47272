"""Two views: where they and the small crops are cut, what they go through, and which pairs are compared."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.views.augmentation import Augmentation
from data.views.boxes import box_iou
from methods.crops import Crops
from methods.simclr import SimCLR
from methods.simsiam import SimSiam
from methods.two_views import embed, mean_over_pairs
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels

EXTENTS = {2: (30, 40), 3: (12, 18, 20)}


def tiny(dims: int, **fields: object) -> SimCLR:
    config = {"hidden_dim": 4, "projector_dim": 3, "augment": {"flip_prob": 0, "transforms": []}, **fields}
    return SimCLR(SimCLR.Config.model_validate(config), Pixels(dims), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_two_views_keep_to_the_interval_and_small_crops_come_after_them(dims):
    fields = {"crops": {"size": 8, "iou": [0.3, 0.6]}, "small_crops": {"num": 2, "size": 4}}
    method, batch = tiny(dims, **fields), random_batch([EXTENTS[dims]] * 20)
    views = method.views(batch, batch.rng(0))
    assert [tuple(image.shape[2:]) for image in views.images] == [(8,) * dims] * 2 + [(4,) * dims] * 2
    assert len(views.boxes) == 4
    iou = box_iou(*views.boxes[:2])
    assert 0.3 <= iou.min() <= iou.max() <= 0.6
    for image, boxes in zip(views.images[:2], views.boxes[:2], strict=True):
        low, high = boxes[3]
        inside = (3, slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
        torch.testing.assert_close(image[3], batch.voxels[inside].float() / 255)


@pytest.mark.parametrize("dims", [2, 3])
def test_crops_of_an_area_show_their_share_resized_to_one_size(dims):
    method, batch = tiny(dims, crops={"size": 8, "area": [0.3, 0.5]}), random_batch([EXTENTS[dims]] * 40)
    views = method.views(batch, batch.rng(0))
    assert [tuple(image.shape[2:]) for image in views.images] == [(8,) * dims] * 2
    for boxes in views.boxes:
        shares = (boxes[:, 1] - boxes[:, 0]).prod(axis=1) / np.prod(EXTENTS[dims])
        assert 0.3 / 1.2 < shares.min() < shares.max() < 0.5 * 1.2
    assert not np.array_equal(*views.boxes)
    method.check_extent((2,) * dims)


def test_an_area_and_an_interval_of_the_iou_exclude_each_other():
    with pytest.raises(ValidationError, match=r"iou \[0\.3, 0\.6\] with area \[0\.1, 1\.0\].*remove crops\.area"):
        Crops(area=(0.1, 1), iou=(0.3, 0.6))


def test_simsiam_takes_crops_of_an_area_too():
    method = SimSiam(SimSiam.Config.model_validate({"crops": {"size": 8, "area": [0.2, 1]}}), Pixels(2), FACTS)
    batch = random_batch([EXTENTS[2]] * 4)
    views = method.views(batch, batch.rng(0))
    assert [tuple(image.shape) for image in views.images] == [(4, 1, 8, 8)] * 2


def test_the_second_view_goes_through_its_own_augmentation_where_there_is_one():
    fixed = {"crops": {"size": 8, "iou": [1, 1]}}
    batch = random_batch([EXTENTS[2]] * 4)
    brighter = Augmentation(shift=(0.5, 0.5), shift_prob=1.0)
    first, second = tiny(2, **fixed, augment_other=brighter.model_dump()).views(batch, batch.rng(0)).images
    torch.testing.assert_close(second, first + 0.5)
    first, second = tiny(2, **fixed).views(batch, batch.rng(0)).images
    torch.testing.assert_close(second, first)


def test_each_of_the_two_views_is_the_target_of_all_others_equally_often():
    asked: list[tuple[int, int]] = []

    def loss(view: int, target: int) -> torch.Tensor:
        asked.append((view, target))
        return torch.tensor(10.0 * view + target)

    assert mean_over_pairs(loss, 2).item() == (10 + 1) / 2
    assert mean_over_pairs(loss, 4).item() == pytest.approx((10 + 20 + 30 + 1 + 21 + 31) / 6)
    assert asked == [(1, 0), (0, 1), (1, 0), (2, 0), (3, 0), (0, 1), (2, 1), (3, 1)]


@pytest.mark.parametrize(("together", "passes"), [(False, [3, 3, 6]), (True, [6, 6])])
def test_views_pass_the_head_alone_or_together_and_small_crops_together(together, passes):
    seen: list[int] = []

    class Head(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            seen.append(len(features))
            return 2 * features

    images = [torch.full((3, 1, 4, 4), float(number)) for number in range(2)]
    images += [torch.full((3, 1, 2, 2), float(number)) for number in (2, 3)]
    outputs = embed(Pixels(2), Head(), images, together)
    assert seen == passes
    assert [output.unique().item() for output in outputs] == [0, 2, 4, 6]
    assert {tuple(output.shape) for output in outputs} == {(3, 1)}
