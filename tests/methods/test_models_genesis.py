"""Models Genesis: loss and gradient equal a slow reference, distortions are the paper's, and restoring is learnt."""

import numpy as np
import pytest
import torch

from data.views.rng import SampleRng
from methods.base import Views
from methods.encoders import UNetEncoder
from methods.models_genesis import ModelsGenesis, draw_flips
from methods.parts.distortions import (
    bend,
    draw_curves,
    draw_windows,
    longest_window,
    paint_inside,
    paint_outside,
    shuffle,
)
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import samples_of, sgd, take_steps, tiny_method
from tests.references import models_genesis as reference

OFF = {"curve_prob": 0, "shuffle_prob": 0, "paint_prob": 0, "flip_prob": 0}


def tiny(dims: int, channels: int = 1, **fields: object) -> ModelsGenesis:
    torch.manual_seed(0)
    given = {"crop_size": 4, "num_windows": 20} | fields
    return ModelsGenesis(ModelsGenesis.Config.model_validate(given), Pixels(dims, channels), FACTS)


def streams(count: int) -> SampleRng:
    return SampleRng.for_samples(0, [0] * count, [str(i) for i in range(count)])


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims: int) -> None:
    method = tiny(dims, channels=2).double()
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    distorted, whole = torch.rand(2, 3, 2, *[4] * dims, generator=generator, dtype=torch.float64)

    losses = method.loss(Views((distorted, whole)))
    losses.total.backward()

    assert abs(losses.total.item() - reference.loss(distorted.numpy(), whole.numpy(), weights)) < 1e-12
    expected = reference.gradients(distorted.numpy(), whole.numpy(), weights)
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-8, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, f"{name}: a zero gradient would prove nothing"


def test_the_constant_is_the_mean_voxel() -> None:
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]).view(2, 1, 2, 2)
    losses = tiny(2).loss(Views((whole, whole)))
    assert losses.of_constant == pytest.approx(0.125)


@pytest.mark.parametrize("dims", [2, 3])
def test_windows_are_shuffled_as_one_after_the_other_would_be(dims: int) -> None:
    size, rng = (30, 20, 24)[-dims:], streams(3)
    images = torch.arange(3 * int(np.prod(size))).float().view(3, 1, *size)
    low, lengths = draw_windows(size, 200, rng)
    ours = shuffle(images, low, lengths, rng.fold("order"))
    offsets = np.prod(longest_window(size))
    keys = rng.fold("order").normal_voxels((200, int(offsets)), images.device).view(3, 200, *longest_window(size))
    for i in range(3):
        expected = reference.shuffled(images[i, 0].numpy(), low[i], lengths[i], keys[i].numpy())
        np.testing.assert_array_equal(ours[i, 0].numpy(), expected)
        assert (expected != images[i, 0].numpy()).mean() > 0.04


@pytest.mark.slow
def test_curves_are_the_bezier_curves_of_their_points() -> None:
    points = draw_curves(streams(12))
    values = torch.linspace(0, 1, 9).expand(12, 1, 9)
    ours = bend(values[..., None], points)[:, 0, :, 0]
    for curve, bent in zip(points, ours, strict=True):
        expected = [reference.bezier(curve, float(value)) for value in values[0, 0]]
        np.testing.assert_allclose(bent.numpy(), expected, rtol=0, atol=2e-3)


def test_curves_are_monotone_and_fall_half_of_the_time() -> None:
    bent = bend(torch.linspace(0, 1, 64).expand(1000, 1, 64)[..., None], draw_curves(streams(1000)))[:, 0, :, 0]
    steps = bent.diff(dim=1)
    falls = bent[:, 0] > bent[:, -1]
    assert (steps[~falls] >= -1e-5).all()
    assert (steps[falls] <= 1e-5).all()
    assert falls.float().mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("dims", [2, 3])
def test_painting_inside_replaces_boxes_and_painting_outside_all_but_boxes(dims: int) -> None:
    images = torch.full((60, 1, *[42] * dims), 2.0)
    inside, outside = (paint(images, streams(60)) for paint in (paint_inside, paint_outside))
    replaced = [(each != 2).flatten(1).float().mean(1) for each in (inside, outside)]
    assert replaced[0].max() <= 5 / 3**dims
    assert (replaced[0] > 0).float().mean() > 0.85
    assert replaced[1].min() >= 1 - 5 * (25 / 42) ** dims
    assert replaced[1].max() <= 1 - (17 / 42) ** dims
    for painted in (inside, outside):
        noise = painted[painted != 2]
        assert 0 <= noise.min() <= noise.max() <= 1
        assert noise.mean() == pytest.approx(0.5, abs=0.02)
        assert noise.std() == pytest.approx(12**-0.5, abs=0.02)


def test_released_flips_leave_the_depth_and_waste_a_third_of_the_draws() -> None:
    rng = streams(20_000)
    every, planes = (draw_flips(3, 0.4, depth, rng).mean(axis=0) for depth in (True, False))
    np.testing.assert_array_equal(planes[1:], every[1:])
    assert planes[0] == 0
    # One, two and three draws come with 0.24, 0.096 and 0.064, and hit an axis oddly often with 1/3, 4/9 and 13/27.
    once = 0.24 / 3 + 0.096 * 4 / 9 + 0.064 * 13 / 27
    assert every == pytest.approx([once] * 3, abs=0.012)
    assert draw_flips(2, 0.4, True, rng).mean(axis=0) == pytest.approx([0.2] * 2, abs=0.012)
    assert draw_flips(2, 0.4, False, rng).mean(axis=0) == pytest.approx([once] * 2, abs=0.012)


def test_an_undistorted_crop_is_what_is_stored_and_distortions_come_as_often_as_they_should() -> None:
    batch = random_batch([(6, 7)] * 100)
    seen, whole = tiny(2, 1, **OFF).views(batch, batch.rng(0)).images
    assert torch.equal(seen, whole)
    for name, share in (("curve_prob", 0.9), ("paint_prob", 1.0), ("shuffle_prob", 0.5)):
        method = tiny(2, 1, **{**OFF, name: share, "crop_size": (6, 7)})
        views = method.views(batch, batch.rng(0))
        torch.testing.assert_close(views.images[1], batch.voxels.float() / 255, rtol=0, atol=1e-6)
        changed = (views.images[0] != views.images[1]).flatten(1).any(1).float().mean()
        # Windows of a crop this small are single voxels, which stay where they are.
        assert changed == pytest.approx(0 if name == "shuffle_prob" else share, abs=0.08)


@pytest.mark.slow
def test_restoring_is_learnt_better_than_by_the_best_constant() -> None:
    method, batch = tiny_method("models_genesis paper", 2), samples_of("models_genesis paper", 2, 8)
    take_steps(method, sgd(method, lr=0.1), batch, range(60))
    with torch.no_grad():
        losses = method.loss(method.drawn(batch, batch.rng(99)))
    assert losses.of_constant is not None
    assert losses.total < 0.9 * losses.of_constant


def test_variants_differ_in_the_flips() -> None:
    paper, released = (ModelsGenesis.Config.model_validate({"variant": name}) for name in ("paper", "released"))
    assert (paper.flip_depth, released.flip_depth) == (True, False)
    assert paper.model_dump(exclude={"variant", "flip_depth"}) == released.model_dump(
        exclude={"variant", "flip_depth"}
    )


def test_crops_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\) exceeds samples of size \(3, 9\); lower method\.crop_size"):
        tiny(2).check_extent((3, 9))
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(2, 2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"crop_size \(40, 40\): 40 is not a multiple of .* stride 16"):
        ModelsGenesis(ModelsGenesis.Config(crop_size=40), encoder, FACTS)
