"""VICRegL: loss and gradient equal a slow reference; places are matched by where they lie, and by their features."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from methods.vicregl import VICRegL, best_matches
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.two_views import assert_equal_to_reference, noise_views, shake
from tests.references import redundancy as reference

SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"orders": [(0, 1), (1, 0)], "nums": (3, 3, 2), "double": 2, "share": 1.0},
    "released": {"orders": [(1, 0)], "nums": (3, 2, 4), "double": 1, "share": 0.5},
}


def tiny(dims: int = 2, channels: int = 4, **fields: object) -> VICRegL:
    torch.manual_seed(0)
    config = {"projector_dim": 3, "maps_dim": 3, "crops": {"size": 4}, "small_crops": {"size": 2}, **fields}
    return VICRegL(VICRegL.Config.model_validate(config), Pixels(dims, channels), FACTS)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "num_views", "dims"), [("paper", 2, 2), ("released", 3, 2), ("paper", 2, 3)])
def test_loss_and_gradients_equal_the_reference(variant, num_views, dims):
    settings = SETTINGS[variant]
    forth, back, features = settings["nums"]
    fields = {"num_matches": forth, "back_matches": back, "alpha": 0.6}
    fields["feature_matches"] = "all" if variant == "released" and dims == 2 else features
    method, views = shake(tiny(dims, 2, variant=variant, **fields)), noise_views(num_views, 3, 2, dims=dims)
    places = torch.rand(3, 2, 2**dims, dims, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert_equal_to_reference(
        method,
        replace(views, targets={"places": places}),
        lambda images, w: reference.vicregl_loss(images, w, places.numpy(), alpha=0.6, **settings),
    )


def test_the_nearest_places_are_chosen_in_raster_order():
    distances = torch.tensor([[[5.0, 9.0], [3.0, 4.0], [2.0, 1.0], [7.0, 8.0]]])
    chosen, partners = best_matches(distances, 2)
    assert (chosen.tolist(), partners.tolist()) == ([[1, 2]], [[0, 1]])
    assert best_matches(distances, 20)[0].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("dims", [2, 3])
def test_places_are_those_of_the_voxels_that_a_flipped_and_turned_view_shows(dims):
    augment = {"flip_axes": ["H", "W"], "flip_prob": 0.5, "rotate_prob": 0.5, "transforms": []}
    method = tiny(dims, channels=1, augment=augment, augment_other=augment)
    batch = random_batch([(8, 10, 12)[-dims:]] * 6)
    views = method.views(batch, batch.rng(0))
    for view, image in enumerate(views.images):
        places = views.targets["places"][:, view].numpy()
        index = np.rint(places).astype(int)
        np.testing.assert_allclose(places, index, atol=1e-4)
        for sample in range(6):
            shown = batch.voxels[(sample, 0, *index[sample].T)].float() / 255
            torch.testing.assert_close(shown, image[sample].flatten(), rtol=0, atol=1e-5)
    as_cut = tiny(dims, channels=1, augment=augment, augment_other=augment, follow_moves=False)
    found = as_cut.views(batch, batch.rng(0)).targets["places"]
    assert (found.diff(dim=2)[..., -1] >= -3).all(), "in raster order of the sample"
    low = torch.from_numpy(np.stack(views.boxes, axis=1)[:, :, 0]).to(found)
    torch.testing.assert_close(found[:, :, 0], low, rtol=0, atol=1e-4)


def test_places_of_a_resized_share_of_a_sample_lie_evenly_in_its_box():
    plain = {"transforms": [], "flip_prob": 0}
    method = tiny(channels=1, crops={"size": 4, "area": [0.2, 0.9]}, augment=plain, augment_other=plain)
    batch = random_batch([(20, 30)] * 5)
    views = method.views(batch, batch.rng(0))
    for view, boxes in enumerate(views.boxes):
        for sample, (low, high) in enumerate(boxes):
            expected = [low[axis] + (np.arange(4) + 0.5) * (high - low)[axis] / 4 - 0.5 for axis in range(2)]
            grid = np.stack(np.meshgrid(*expected, indexing="ij"), axis=-1).reshape(-1, 2)
            np.testing.assert_allclose(views.targets["places"][sample, view], grid, atol=1e-4)


@pytest.mark.parametrize(("variant", "weight"), [("paper", 50 * (0.75 + 0.25 * 2)), ("released", 25 * (0.75 + 0.25))])
def test_a_constant_s_loss_is_that_of_its_variances(variant, weight):
    views = replace(noise_views(2), targets={"places": torch.rand(5, 2, 4, 2)})
    losses = tiny(variant=variant).double().loss(views)
    assert losses.of_constant is not None
    assert losses.of_constant.item() == pytest.approx(weight * 0.99)


def test_variants_differ_in_the_five_contradictions_and_in_nothing_else():
    paper, released = (VICRegL.Config(variant=variant).model_dump() for variant in ("paper", "released"))
    different = {name: (paper[name], released[name]) for name in paper if paper[name] != released[name]}
    assert different == {
        "variant": ("paper", "released"),
        "terms": ("sum", "mean"),
        "feature_matches": (20, "all"),
        "back_matches": (20, 4),
        "follow_moves": (True, False),
        "pairs": ("both", "last"),
    }
