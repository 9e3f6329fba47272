"""Rubik's cube++: loss and gradient equal a slow reference, also against the discriminator; twists are a cube's."""

import numpy as np
import pytest
import torch

from data.views.rng import SampleRng
from methods.base import Views
from methods.rubiks_cube_plus import RubiksCubePlus, draw_twists, twist
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import samples_of, sgd, take_steps, tiny_method
from tests.references import rubiks_cube_plus as reference


def tiny(dims: int, **fields: object) -> RubiksCubePlus:
    torch.manual_seed(0)
    given = {"side": 4, "num_slabs": 2, "num_halvings": 0} | fields
    return RubiksCubePlus(RubiksCubePlus.Config.model_validate(given), Pixels(dims), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims: int) -> None:
    method = tiny(dims, lambda_restoration=2.0, lambda_adversarial=0.3).double()
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    twisted, whole = torch.randn(2, 3, 1, *[4] * dims, generator=generator, dtype=torch.float64)

    losses = method.loss(Views((twisted, whole)))
    losses.total.backward()

    error, real, fake, passing = reference.parts(twisted.numpy(), whole.numpy(), weights)
    assert abs(losses.total.item() - (2 * error + real + fake + 0.3 * passing)) < 1e-10
    expected = reference.gradients(twisted.numpy(), whole.numpy(), weights, 2.0, 0.3)
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, f"{name}: a zero gradient would prove nothing"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("slabs", [2, 3])
def test_twists_take_every_voxel_where_a_cube_s_layers_take_it(slabs: int, dims: int) -> None:
    rng = SampleRng.for_samples(0, [0] * 6, list("abcdef"))
    twists = draw_twists(dims, slabs, 0.7, rng)
    images = torch.arange(6 * 5**dims).float().view(6, 1, *[5] * dims)
    twisted = twist(images, twists)
    for image, own, ours in zip(images, twists, twisted, strict=True):
        np.testing.assert_array_equal(ours[0].numpy(), reference.twist(image[0].numpy(), own))
    assert not torch.equal(twisted, images)


def test_as_many_layers_are_twisted_as_asked_for_and_by_all_angles_alike() -> None:
    rng = SampleRng.for_samples(0, [0] * 2000, [str(i) for i in range(2000)])
    twists = draw_twists(3, 4, 0.5, rng)
    assert np.bincount(twists.flatten()) / twists.size == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.01)
    assert set(np.unique(draw_twists(2, 4, 0.5, rng))) == {0, 2}


def test_whole_crops_are_what_is_stored() -> None:
    batch = random_batch([(6, 7)] * 10)
    views = tiny(2).views(batch, batch.rng(0))
    for i, ((top, left), (bottom, right)) in enumerate(views.boxes[0]):
        stored = batch.voxels[i, 0, top:bottom, left:right].float() / 255
        torch.testing.assert_close(views.images[1][i, 0], stored, rtol=0, atol=1e-6)
        assert sorted(views.images[0][i].flatten().tolist()) == sorted(views.images[1][i].flatten().tolist())


def test_the_discriminator_halves_crops_and_the_weight_of_passing_for_real_concerns_the_restoring_network_alone() -> (
    None
):
    method = tiny(2, side=16, num_halvings=3, hidden_dim=2)
    assert method.discriminator(torch.rand(2, 2, 16, 16)).shape == (2, 1, 2, 2)
    views = Views(tuple(torch.rand(2, 2, 1, 16, 16)))
    found = []
    for against in (0.5, 1.0):
        method.config = method.config.model_copy(update={"lambda_adversarial": against})
        method.zero_grad()
        method.loss(views).total.backward()
        found.append({name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]) == name.startswith("discriminator"), name


def test_too_many_halvings_or_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.side 4: 3 halvings or 2 layers are too many .*raise method\.side"):
        tiny(2, num_halvings=3)
    with pytest.raises(ValueError, match=r"\(4, 4\) exceeds samples of size \(3, 9\); lower method\.side"):
        tiny(2).check_extent((3, 9))


@pytest.mark.slow
def test_restoring_is_learnt_better_than_by_the_best_constant() -> None:
    method, batch = tiny_method("rubiks_cube_plus", 2), samples_of("rubiks_cube_plus", 2, 8)
    assert isinstance(method, RubiksCubePlus)
    # Few enough twists that a short training sees mostly what it has to keep.
    method.config = method.config.model_copy(update={"twist_prob": 0.1})
    take_steps(method, sgd(method, lr=0.01), batch, range(60))
    views = method.drawn(batch, batch.rng(99))
    with torch.no_grad():
        losses = method.loss(views)
    assert losses.parts["restoration_error"] < 0.8 * views.images[1].var(correction=0)
