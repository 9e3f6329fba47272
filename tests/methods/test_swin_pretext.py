"""Swin pretext: loss and gradient equal a slow reference; turns, cut-outs and exchanges are the released ones."""

from math import log

import numpy as np
import pytest
import torch

from data.views.rng import SampleRng
from methods.base import Views
from methods.swin_pretext import SwinPretext, draw_cut_outs, quarter_turn, version_contrast
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import samples_of, sgd, take_steps, tiny_method
from tests.references import swin_pretext as reference


def tiny(dims: int, channels: int = 1, **fields: object) -> SwinPretext:
    torch.manual_seed(0)
    given = {"side": 4, "projector_dim": 3} | fields
    return SwinPretext(SwinPretext.Config.model_validate(given), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_loss_and_gradients_equal_the_reference(variant: str, dims: int) -> None:
    method = tiny(dims, channels=2, variant=variant, side=2).double()
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    seen, whole = torch.rand(2, 2, 2, 3, 2, *[2] * dims, generator=generator, dtype=torch.float64)
    turns = torch.randint(0, 4, (3, 4), generator=generator)

    images = (*seen.flatten(0, 1), *whole.flatten(0, 1))
    losses = method.loss(Views(images, targets={"turns": turns}))
    losses.total.backward()

    given = (seen.numpy(), whole.numpy(), turns.numpy(), weights, method.config.tokens, 0.5)
    assert abs(losses.total.item() - reference.loss(*given)) < 1e-10
    expected = reference.gradients(*given)
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, f"{name}: a zero gradient would prove nothing"


def test_versions_that_are_all_alike_cost_the_logarithm_of_the_others() -> None:
    same = torch.ones(5, 3)
    assert version_contrast(same, same, 0.5).item() == pytest.approx(log(9))
    apart = torch.eye(5)
    assert version_contrast(apart, apart, 0.1).item() == pytest.approx(log(1 + 8 * np.exp(-10)), rel=1e-3)


@pytest.mark.parametrize(("plane", "axes"), [((-2, -1), (1, 2)), ((-3, -1), (0, 2))])
def test_turns_are_of_the_plane_and_keep_the_third_axis(plane: tuple[int, int], axes: tuple[int, int]) -> None:
    image = np.random.default_rng(0).normal(size=(3, 3, 3))
    turned = quarter_turn(torch.from_numpy(np.stack([image[None]] * 4)).float(), np.arange(4), plane)
    for number in range(4):
        expected = np.rot90(image, number, axes).astype(np.float32)
        np.testing.assert_array_equal(turned[number, 0].numpy(), expected)


@pytest.mark.parametrize("size", [(96, 96), (48, 48, 48)])
def test_cut_outs_hold_between_nothing_and_their_largest_share(size: tuple[int, ...]) -> None:
    rng = SampleRng.for_samples(0, [0] * 400, [str(i) for i in range(400)])
    boxes, counts = draw_cut_outs(size, 0.3, rng)
    lengths = boxes[:, :, 1] - boxes[:, :, 0]
    assert (lengths > 0).all()
    assert lengths.max() < 0.25 * size[0]
    assert boxes.min() >= 0
    assert boxes.max() == size[0]
    held = np.array([lengths[i, :count].prod(axis=1).sum() for i, count in enumerate(counts)]) / np.prod(size)
    largest = 0.25 ** len(size)
    assert held.max() < 0.3 + largest
    # The share is uniform from 0 to 0.3, and the last box exceeds it by less than itself.
    assert 0.15 < held.mean() < 0.15 + largest


def test_seen_versions_are_the_whole_ones_but_for_noise_and_what_another_crop_shows() -> None:
    batch = random_batch([(48, 52)] * 12)
    for noise, exchanged in ((0, 0), (0.3, 0), (0, 0.3)):
        views = tiny(2, side=40, noise=noise, exchanged=exchanged).views(batch, batch.rng(0))
        seen, whole = torch.stack(views.images).chunk(2)
        changed = (seen != whole).flatten(2).float().mean(2)
        if not noise + exchanged:
            assert torch.equal(seen, whole)
            continue
        assert changed.max() < 0.3
        assert changed.mean() > 0.08
        if exchanged:
            other = whole[[2, 3, 0, 1]]
            assert torch.equal(seen[seen != whole], other[seen != whole])
    for i, ((top, left), (bottom, right)) in enumerate(views.boxes[0]):
        stored = batch.voxels[i, 0, top:bottom, left:right].float() / 255
        turns = int(views.targets["turns"][i, 0])
        torch.testing.assert_close(whole[0, i, 0], torch.rot90(stored, turns), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_turns_come_equally_often() -> None:
    batch = random_batch([(4, 4)] * 400)
    turns = tiny(2).views(batch, batch.rng(0)).targets["turns"]
    assert torch.bincount(turns.flatten()) / turns.numel() == pytest.approx([0.25] * 4, abs=0.04)


@pytest.mark.slow
def test_all_three_tasks_are_learnt_better_than_by_the_best_constant() -> None:
    # The means of maps after instance norm, which the tiny U-Net has, tell nothing.
    method, batch = tiny_method("swin_pretext paper", 2, "pooled_unet"), samples_of("swin_pretext paper", 2, 8)
    take_steps(method, sgd(method, lr=0.05), batch, range(60))
    with torch.no_grad():
        losses = method.loss(method.drawn(batch, batch.rng(99)))
    assert losses.of_constant is not None
    assert losses.total < losses.of_constant - 0.3
    assert losses.parts["contrast_loss"] < log(31)
