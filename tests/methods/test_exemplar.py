"""Exemplar: both versions' loss and gradient equal a slow reference; views are an original and its transform."""

import numpy as np
import pytest
import torch

from methods.base import Views
from methods.encoders import PooledUNetEncoder, UNetEncoder
from methods.exemplar import Exemplar, distances, triplet_loss
from methods.parts.turns import TURNS, turn
from tests.batches import FACTS, eight_bit_batch, random_batch
from tests.cues import intensity_cues, textures
from tests.encoders import Pixels
from tests.references import exemplar as reference

STILL = dict.fromkeys(("zoom_prob", "flip_prob", "scale_prob", "shift_prob"), 0.0)


def tiny(variant: str, spatial_dims: int, **fields: object) -> Exemplar:
    torch.manual_seed(0)
    given = {"variant": variant, "side": 4, "projector_dim": 5} | fields
    return Exemplar(Exemplar.Config.model_validate(given), Pixels(spatial_dims), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_loss_and_gradients_equal_the_reference(variant, dims):
    method = tiny(variant, dims, side=2).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    images = torch.randn(2, 4, 1, *[2] * dims, generator=generator, dtype=torch.float64, requires_grad=True)

    losses = method.loss(Views(tuple(images)))
    losses.total.backward()

    flat = images.detach().numpy().reshape(2, 4, -1)
    assert abs(losses.total.item() - reference.LOSSES[variant](*flat, weights)) < 1e-12
    expected = reference.gradients(variant, flat, weights)
    assert images.grad is not None
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    assert set(ours) == set(weights)
    for name, gradient in {**ours, "images": images.grad.numpy().reshape(2, 4, -1)}.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-8, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, f"{name}: a zero gradient would prove nothing"


def test_a_negative_that_is_farther_by_the_margin_costs_nothing():
    near, far = torch.tensor([0.5, 0.5, 2.0]), torch.tensor([1.5, 1.0, 2.0])
    assert triplet_loss(near, far, margin=1.0).item() == pytest.approx((0 + 0.5 + 1) / 3)


def test_distances_are_those_of_the_paper_and_of_the_code():
    first, second = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[4.0, 6.0], [0.0, 0.0]])
    assert distances(first, second, "l2").tolist() == [5, 0]
    assert distances(first, second, "mean_square").tolist() == [12.5, 0]


def test_an_unchanged_sample_sends_finite_gradients():
    z = torch.ones(2, 3, requires_grad=True)
    distances(z, torch.ones(2, 3), "l2").sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_first_image_is_what_is_stored_and_the_second_a_turn_of_it(dims):
    method = tiny("paper", dims, augment=STILL, turn_prob=0.7)
    batch = random_batch([(6, 5, 7)[-dims:], (4, 8, 4)[-dims:]] * 30)
    views = method.views(batch, batch.rng(0))
    original, turned = views.images
    seen = []
    for i, (low, high) in enumerate(views.boxes[0]):
        stored = batch.voxels[(i, slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))].float() / 255
        torch.testing.assert_close(original[i], stored, rtol=0, atol=1e-7)
        candidates = turn(original[i].expand(len(TURNS[dims]), *original[i].shape), np.arange(len(TURNS[dims])))
        seen += [number for number, image in enumerate(candidates) if torch.equal(image, turned[i])]
    assert len(seen) == 60
    assert set(seen) == set(range(len(TURNS[dims])))
    assert 8 <= seen.count(0) <= 28


def test_brightness_contrast_flips_and_zoom_change_the_second_image_alone():
    for name in STILL:
        method = tiny("paper", 2, augment={**STILL, name: 1.0}, turn_prob=0, side=16)
        batch = random_batch([(16, 16)] * 8)
        original, transformed = method.views(batch, batch.rng(0)).images
        torch.testing.assert_close(original, batch.voxels.float() / 255, rtol=0, atol=1e-7)
        assert not torch.equal(original, transformed), name


@pytest.mark.parametrize("normalise", [False, True])
def test_brightness_tells_whose_an_image_is_unless_images_are_normalised(normalise):
    batch = eight_bit_batch(textures(600, (16, 16)), [(16, 16)] * 600, tuple(map(str, range(600))))
    method = tiny("paper", 2, side=16, normalise=normalise, augment={"zoom_prob": 0.0})
    own, transformed = (intensity_cues((image,))[:, :2] for image in method.views(batch, batch.rng(0)).images)
    if normalise:
        np.testing.assert_allclose(np.concatenate([own, transformed]) - [0, 1], 0, rtol=0, atol=0.003)
    else:
        near, far = (((own - other) / own.std(axis=0)) ** 2 for other in (transformed, np.roll(own, -1, axis=0)))
        assert (near.sum(axis=1) < far.sum(axis=1)).mean() > 0.65


def test_a_single_sample_has_no_negative():
    method, batch = tiny("paper", 2), random_batch([(4, 4)])
    with pytest.raises(ValueError, match=r"batch of 1 sample: .*raise budget\.batch_size to 2"):
        method.loss(method.views(batch, batch.rng(0)))


def test_variants_differ_in_the_three_contradictions_and_in_nothing_else():
    paper, released = (Exemplar.Config(variant=variant).model_dump() for variant in ("paper", "released"))
    different = {name: (paper[name], released[name]) for name in paper if paper[name] != released[name]}
    assert different == {
        "variant": ("paper", "released"),
        "heads": ("one", "three"),
        "anchor": ("original", "transformed"),
        "distance": ("l2", "mean_square"),
    }
    config = Exemplar.Config.model_validate({"variant": "released", "augment": {"zoom_prob": 0}})
    assert (config.heads, config.augment.zoom_prob, config.augment.flip_prob) == ("three", 0, 0.5)
    assert Exemplar.Config.model_validate_json(config.model_dump_json()) == config


def test_three_heads_on_the_papers_map_have_the_known_number_of_parameters():
    with torch.device("meta"):
        encoder = PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=3))
        method = Exemplar(Exemplar.Config.model_validate({"variant": "released"}), encoder, FACTS)
    assert sum(p.numel() for p in method.heads.parameters()) == 3 * (16_384 * 1024 + 1024)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) exceeds samples of size \(9, 3, 9\); lower method\.side"):
        tiny("paper", 3).check_extent((9, 3, 9))
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(2, 2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"side \(60, 60\): 60 is not a multiple of .* stride 16; use 64"):
        Exemplar(Exemplar.Config(side=60), encoder, FACTS)
