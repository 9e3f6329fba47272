"""Every method that augments takes transforms from its config, and gives the views of a sample different ones."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.views.augmentation import Augmentation
from data.views.transforms import JSSL, SWAV
from methods import METHODS
from methods.parts.fitting import Fitting
from methods.simsiam import SimSiam
from methods.voco import VoCo
from tests.batches import eight_bit_batch, random_batch
from tests.encoders import DIMS, Pixels
from tests.methods.test_contract import (
    FACTS,
    encoder_for,
    samples_of,
    slow_unless_it_stands,
    tiny_config,
    tiny_encoder,
)
from tests.methods.test_segmentation import STORED, batch_of, method_of

# Each adds a number of its own.
MARKS = [{"name": "noise", "mean": [mark, mark], "sigma": [0, 0]} for mark in (1.0, 2.0, 4.0)]
STILL = {"zoom_prob": 0, "flip_prob": 0, "rotate_prob": 0, "scale_prob": 0, "smooth_prob": 0, "noise_prob": 0}
AUGMENTS = [name for name, method in METHODS.items() if "augment" in method.Config.model_fields and method.trains]


def marks(images: Tensor, stored: Tensor) -> list[int]:
    """Return what was added to each image."""
    added = (images - stored).flatten(1)
    torch.testing.assert_close(added, added[:, :1].expand_as(added), rtol=0, atol=1e-5)
    return [round(value) for value in added[:, 0].tolist()]


@pytest.mark.slow
def test_the_two_views_of_simsiam_go_through_different_transforms() -> None:
    fields: dict[str, Any] = {"crops": {"size": 4, "iou": [1, 1]}, "augment": {**STILL, "one_of": MARKS}}
    method = SimSiam(SimSiam.Config.model_validate(fields | {"projector_dim": 6}), Pixels(2, 5), FACTS)
    batch, pairs = random_batch([(4, 4)] * 12), set()
    for seed in range(10):
        first, second = (
            marks(view, batch.voxels.float() / 255) for view in method.views(batch, batch.rng(seed)).images
        )
        pairs |= set(zip(first, second, strict=True))
    assert pairs == {(a, b) for a in (1, 2, 4) for b in (1, 2, 4) if a != b}


def test_the_views_of_voco_go_through_all_transforms_before_one_repeats() -> None:
    augment = {**STILL, "shift_prob": 0, "one_of": MARKS}
    config = VoCo.Config.model_validate({"grid": (1, 2, 2), "crop_size": 4, "num_crops": 2, "augment": augment})
    batch = eight_bit_batch(torch.full((5, 1, 8, 8), 51).byte(), [(8, 8)] * 5, tuple("abcde"))
    views = VoCo(config, Pixels(2, 5), FACTS).views(batch, batch.rng(0)).images
    by_view = np.array([marks(view, torch.full_like(view, 0.2)) for view in views])
    assert by_view.shape == (6, 5)
    assert (np.sort(by_view[:3], axis=0).T == [1, 2, 4]).all()
    assert np.array_equal(by_view[3:], by_view[:3])


def test_labels_of_a_segmentation_move_with_flips_and_affines() -> None:
    moves = [{"name": "flip", "axes": ["H", "W"]}, {"name": "affine", "degrees": [90, 90], "scales": [1, 1]}]
    method = method_of(augment=Augmentation.model_validate({"transforms": moves}), crops_per_sample=2)
    batch = batch_of([(40, 36), (33, 44)])
    views = method.views(batch, batch.rng(0))
    for image, classes in zip(views.images, views.targets["classes"], strict=True):
        assert torch.equal((image[:, 0] * 255 / STORED).round().long(), classes)
        assert set(classes.unique().tolist()) == {0, 1, 2}


def test_crops_of_a_segmentation_go_through_different_transforms() -> None:
    method = method_of(augment=Augmentation.model_validate({"one_of": MARKS}), crops_per_sample=3)
    batch = batch_of([(32, 32)] * 4)
    views = method.views(batch, batch.rng(0)).images
    by_view = np.array([marks(view, batch.voxels.float() / 255) for view in views])
    assert (np.sort(by_view, axis=0).T == [1, 2, 4]).all()


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        pytest.param(name, dims, marks=slow_unless_it_stands(name))
        for name in AUGMENTS
        for dims in DIMS[encoder_for(name)]
    ],
)
def test_every_method_that_augments_takes_transforms(name: str, dims: int) -> None:
    config = tiny_config(name, dims)
    augment = config.augment.model_copy(update={"transforms": SWAV, "one_of": JSSL})  # type: ignore[attr-defined]
    torch.manual_seed(0)
    batch = samples_of(name, dims, 2)
    plain, changed = (
        METHODS[name](each, tiny_encoder(encoder_for(name), dims), FACTS).views(batch, batch.rng(0))
        for each in (config, config.model_copy(update={"augment": augment}))
    )
    for before, after in zip(plain.images, changed.images, strict=True):
        assert after.shape == before.shape
        assert after.isfinite().all()
    assert not all(torch.equal(*pair) for pair in zip(plain.images, changed.images, strict=True))


@pytest.mark.parametrize(("length", "near"), [(10, 2), (6, 0), (5, -1), (3, -2), (2, -2), (11, 2)])
def test_a_fitting_that_does_not_resize_crops_or_pads_as_torchio_does_but_for_a_voxel(length: int, near: int) -> None:
    """Of 11 voxels, torchio's CropOrPad drops the first three and the last two, and a fitting the other way round."""
    voxels = torch.arange(1, length + 1).byte().view(1, 1, length, 1)
    images, _ = Fitting((6, 1), (None, None)).apply(eight_bit_batch(voxels, [(length, 1)], ("a",)), None)
    expected = [float(at + 1) if 0 <= at < length else 0.0 for at in range(near, near + 6)]
    assert (images[0, 0, :, 0] * 255).round().tolist() == expected
