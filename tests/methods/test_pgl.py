"""PGL: loss and gradient equal a slow reference; places of two views that show one voxel are compared."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from methods.base import Views
from methods.pgl import PGL, local_loss, read_at
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.two_views import assert_equal_to_reference, noise_views, shake, weights_of
from tests.references import pgl as reference

MOVED = {"flip_axes": ["H", "W"], "flip_prob": 0.5, "rotate_prob": 0.5}
STILL = {"scale_prob": 0, "noise_prob": 0, "zoom_prob": 0, "transforms": []}


def tiny(dims: int = 2, channels: int = 4, size: int = 2, **fields: object) -> PGL:
    torch.manual_seed(0)
    config = {"hidden_dim": 8, "projector_dim": 3, "crops": {"size": size, "iou": [0.2, 1]}, **fields}
    return PGL(PGL.Config.model_validate(config), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims):
    method, views = shake(tiny(dims, 3)), noise_views(2, 3, 3, dims)
    taught = {
        name.removeprefix("teacher."): w for name, w in weights_of(method).items() if name.startswith("teacher")
    }
    targets = [reference.by_place(image.numpy(), taught, "projector") for image in views.images]
    generator = torch.Generator().manual_seed(4)
    places = 2.4 * torch.rand(3, 2, 2**dims, dims, generator=generator, dtype=torch.float64) - 1.2
    assert 0 < (places.abs() <= 1).all(3).double().mean() < 1
    assert_equal_to_reference(
        method,
        replace(views, targets={"places": places}),
        lambda images, w: reference.loss(images, w, targets, places.numpy()),
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_the_other_view_shows_at_a_place_what_one_s_own_view_shows_there(dims):
    method = tiny(dims, 1, 6, augment={**STILL, **MOVED})
    batch = random_batch([(9, 10, 11)[-dims:]] * 8)
    views = method.views(batch, batch.rng(0))
    for view in range(2):
        own, other = views.images[view], views.images[1 - view]
        places = views.targets["places"][:, view]
        seen = (places.abs() <= 1).all(2)
        assert seen.any(1).all()
        found = read_at(other.flatten(2).transpose(1, 2), (6,) * dims, places)[..., 0]
        torch.testing.assert_close(found[seen], own.flatten(1)[seen], rtol=0, atol=1e-3)
        assert not torch.isclose(found[~seen], own.flatten(1)[~seen], rtol=0, atol=1e-3).all()


def test_equal_views_cost_nothing_where_the_network_is_its_own_average():
    method = tiny(2, 1, 6, crops={"size": 6, "iou": [1, 1]}, augment=STILL).double()
    batch = random_batch([(9, 10)] * 4)
    views = method.views(batch, batch.rng(0))
    z = method._by_place(method.encoder, method.projector, views.images[0].double())
    seen = torch.ones(4, 36, dtype=torch.bool)
    places = views.targets["places"][:, 0]
    assert local_loss(z, read_at(z, (6, 6), places), seen).item() == pytest.approx(0, abs=1e-6)
    assert local_loss(z, -z, seen).item() == pytest.approx(4)


def test_views_without_a_common_place_cost_nothing():
    method = tiny().double()
    views = noise_views(2)
    losses = method.loss(Views(views.images, targets={"places": torch.full((5, 2, 4, 2), 3.0)}))
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(parameter.grad.abs().sum() == 0 for parameter in method.predictor.parameters())


def test_crops_that_may_not_overlap_are_refused():
    with pytest.raises(ValidationError, match=r"iou \[0\.0, 0\.5\]: two crops may not overlap.*such as \[0\.1, 1\]"):
        PGL.Config.model_validate({"crops": {"iou": [0, 0.5]}})


def test_places_are_found_through_zooms_and_resized_shares_too():
    augment = {**STILL, "zoom": [0.8, 1.2], "zoom_prob": 1.0}
    method = tiny(2, 1, 12, crops={"size": 12, "area": [0.3, 0.8]}, augment=augment)
    ramp = np.add.outer(3.0 * np.arange(40), 2.0 * np.arange(40))[None].repeat(6, 0)
    batch = random_batch([(40, 40)] * 6)
    batch = replace(batch, voxels=torch.from_numpy(ramp).round().byte()[:, None])
    views = method.views(batch, batch.rng(0))
    own, other, places = views.images[0], views.images[1], views.targets["places"][:, 0]
    # Of a ramp, resampling keeps the values, but for the zeros about a view that was made smaller.
    inside = (places.abs() < 0.7).all(2) & (own.flatten(1) > 0)
    found = read_at(other.flatten(2).transpose(1, 2), (12, 12), places)[..., 0]
    inside &= found > 0.05
    assert inside.sum() > 100
    assert (found - own.flatten(1))[inside].abs().median() < 2 / 255
