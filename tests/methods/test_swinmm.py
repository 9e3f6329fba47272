"""SwinMM: loss and gradient equal a slow reference; hidden blocks, turns and swaps are drawn; restoring is learnt."""

from math import log

import numpy as np
import pytest
import torch

from methods.base import Views
from methods.parts.hidden_blocks import enlarge
from methods.swinmm import SWAPS, SwinMM, swap_axes
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import samples_of, sgd, take_steps, tiny_config, tiny_encoder
from tests.references import swinmm as reference


def tiny(dims: int, channels: int = 1, **fields: object) -> SwinMM:
    torch.manual_seed(0)
    given = {"side": 4, "block": 2, "projector_dim": 3} | fields
    return SwinMM(SwinMM.Config.model_validate(given), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize(("dims", "tokens", "normalise"), [(2, "mean", False), (3, "corner", True)])
def test_loss_and_gradients_equal_the_reference(dims: int, tokens: str, normalise: bool) -> None:
    method = tiny(dims, channels=2, tokens=tokens, normalise=normalise).double()
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    # Voxels are seen though they are hidden, and views differ: else this network of one layer would learn nothing.
    first, second, whole = torch.rand(3, 2, 2, 2, 2, *[4] * dims, generator=generator, dtype=torch.float64)
    turns, swaps = (torch.randint(0, most, (2, 4), generator=generator) for most in (4, len(SWAPS[dims])))
    hidden = torch.zeros(2, 4, 2**dims, dtype=torch.bool)
    hidden[..., : 2 ** (dims - 1)] = True
    hidden = hidden[..., torch.randperm(2**dims, generator=generator)].unflatten(2, [2] * dims)
    covers = [enlarge(own, (2,) * dims) for own in hidden.unbind(1)]
    targets = {"turns": turns, "swaps": swaps, "hidden": hidden}
    losses = method.loss(Views((*first.flatten(0, 1), *second.flatten(0, 1), *whole.flatten(0, 1)), targets=targets))
    losses.total.backward()

    arrays = torch.stack([first, second]).numpy(), whole.numpy(), turns.numpy(), swaps.numpy()
    voxels = torch.stack([cover[:, 0] for cover in covers], dim=1).numpy()
    assert abs(losses.total.item() - reference.loss(*arrays, voxels, weights, tokens, normalise)) < 1e-10
    expected = reference.gradients(*arrays, voxels, w=weights, tokens=tokens, normalise=normalise)
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, f"{name}: a zero gradient would prove nothing"


@pytest.mark.parametrize("dims", [2, 3])
def test_swaps_exchange_the_first_axis_with_another_and_undo_themselves(dims: int) -> None:
    images = torch.rand(3, 2, *[4] * dims)
    swaps = torch.tensor([0, len(SWAPS[dims]) - 1, 0])
    swapped = swap_axes(images, swaps)
    for image, found, swap in zip(images, swapped, swaps, strict=True):
        np.testing.assert_array_equal(found.numpy(), reference.swapped(image.numpy(), int(swap)))
    assert torch.equal(swap_axes(swapped, swaps), images)


def test_views_are_turned_crops_of_which_half_of_the_blocks_are_hidden() -> None:
    batch = random_batch([(44, 40)] * 60)
    views = tiny(2, side=32, block=8).views(batch, batch.rng(0))
    seen, swapped, whole = torch.stack(views.images).chunk(3)
    hidden = torch.stack([enlarge(own, (8, 8)) for own in views.targets["hidden"].unbind(1)])
    assert torch.equal(seen, whole.masked_fill(hidden, 0))
    assert torch.equal(swapped, seen.transpose(-1, -2))
    assert hidden.flatten(2).float().mean(2).unique().tolist() == [0.5]
    assert hidden.float().mean((0, 1)).min() > 0.3
    turns = views.targets["turns"]
    assert torch.bincount(turns.flatten()) / turns.numel() == pytest.approx([0.25] * 4, abs=0.1)
    for i, ((top, left), (bottom, right)) in enumerate(views.boxes[1]):
        stored = batch.voxels[i, 0, top:bottom, left:right].float() / 255
        torch.testing.assert_close(whole[1, i, 0], torch.rot90(stored, int(turns[i, 1])), rtol=0, atol=1e-6)


def test_crops_of_one_brightness_are_restored_as_nothing() -> None:
    method = tiny(2)
    with torch.no_grad():
        for weight in method.decoder.parameters():
            weight.zero_()
    batch = random_batch([(4, 4)] * 2)
    batch.voxels.fill_(200)
    losses = method.loss(method.views(batch, batch.rng(0)))
    assert losses.parts["restoration_error"] < 1e-6
    assert losses.of_constant == pytest.approx(log(4) + log(7), abs=1e-5)


def test_blocks_that_do_not_divide_a_crop_are_refused() -> None:
    with pytest.raises(ValueError, match=r"block \(3, 3\) does not divide crops of \(4, 4\) voxels; .*method\.side"):
        tiny(2, block=3)


@pytest.mark.slow
def test_restoring_and_contrast_are_learnt_better_than_by_the_best_constant() -> None:
    # The means of maps after instance norm, which the tiny U-Net has, tell nothing. Turns take longer.
    batch, fields = samples_of("swinmm", 2, 8), tiny_config("swinmm", 2, "pooled_unet").model_dump()
    config = SwinMM.Config.model_validate({**fields, "num_crops": 1})
    torch.manual_seed(0)
    method = SwinMM(config, tiny_encoder("pooled_unet", 2), FACTS).train()
    take_steps(method, sgd(method, lr=0.02), batch, range(40))
    with torch.no_grad():
        losses = method.loss(method.drawn(batch, batch.rng(99)))
    assert losses.of_constant is not None
    assert losses.total < losses.of_constant - 0.3
    assert losses.parts["contrast_loss"] < log(15) - 0.1
    seen_mean = (losses.of_constant - log(4) - log(15)) / 2
    assert max(losses.parts["restoration_error"], losses.parts["swapped_error"]) < seen_mean - 0.1
