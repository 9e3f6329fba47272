"""Patch location: loss and gradient equal a slow reference; labels name places; cues give nothing away."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Views
from methods.encoders import PooledUNetEncoder, UNetEncoder
from methods.patch_location import PatchLocation, draw_queries
from tests.batches import FACTS, eight_bit_batch
from tests.cues import detect, edge_cues, intensity_cues, textures
from tests.encoders import Pixels
from tests.references import classification


def tiny(variant: str, spatial_dims: int, **patches: object) -> PatchLocation:
    torch.manual_seed(0)
    given = {"variant": variant, "hidden_dims": (5, 4), "dropout": 0.0, "patches": {"size": 6} | patches}
    return PatchLocation(PatchLocation.Config.model_validate(given), Pixels(spatial_dims), FACTS)


def batch_of_textures(count: int, size: tuple[int, ...], smoothed: int = 0) -> Batch:
    return eight_bit_batch(textures(count, size, smoothed=smoothed), [size] * count, tuple(map(str, range(count))))


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims):
    method = tiny("paper", dims, size=2, grid=(1, 1, 3)[-dims:]).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    weights = {name: p.detach().numpy() for name, p in method.named_parameters()}
    images = torch.randn(2, 7, 1, *[2] * dims, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = [0, 1, 1, 0, 1, 0, 0]

    losses = method.loss(Views(tuple(images), targets={"labels": torch.tensor(labels)}))
    losses.total.backward()

    centre, query = images.detach().numpy().reshape(2, 7, -1)
    features = np.concatenate([centre, query], axis=1)
    assert abs(losses.total.item() - classification.loss(features, labels, weights)) < 1e-10
    expected = classification.gradients(features, labels, weights)
    assert images.grad is not None
    ours = {name: p.grad.numpy() for name, p in method.named_parameters() if p.grad is not None}
    ours["features"] = np.concatenate(list(images.grad.numpy().reshape(2, 7, -1)), axis=1)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-4, f"{name}: a zero gradient would prove nothing"


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_label_is_the_raster_index_of_the_query_without_the_middle(variant, dims):
    method, middle = tiny(variant, dims, jitter=1), 3**dims // 2
    cells = torch.arange(3**dims).view([3] * dims).byte()
    for axis in range(dims):
        cells = cells.repeat_interleave(10, dim=axis)
    size = (30,) * dims
    batch = eight_bit_batch(cells.expand(40, 1, *size), [size] * 40, tuple(map(str, range(40))))
    views = method.views(batch, batch.rng(0))
    # A patch may reach into the next cells where the grid does not fill the sample; its middle voxels do not.
    inner = (slice(None), 0, *[3] * dims)
    centre, query = ((image[inner] * 255).round().int().numpy() for image in views.images)
    assert (centre == middle).all()
    labels = views.targets["labels"].numpy()
    np.testing.assert_array_equal(query, labels + (labels >= middle))
    assert len(set(labels)) > 6


def test_every_place_is_as_likely_as_any_other():
    queries, labels = draw_queries(27, SampleRng.for_samples(0, [0] * 26000, [str(i) for i in range(26000)]))
    np.testing.assert_allclose(np.bincount(labels, minlength=26), 1000, rtol=0, atol=4 * np.sqrt(1000))
    assert sorted(set(queries)) == [*range(13), *range(14, 27)]


def accuracy_and_chance(method: PatchLocation, batch: Batch, cues: str) -> tuple[float, float]:
    views = method.views(batch, batch.rng(0))
    found = (edge_cues if cues == "edges" else intensity_cues)(views.images)
    return detect(found, views.targets["labels"].numpy())


@pytest.mark.parametrize(("dims", "size"), [(2, 6), (3, 4)])
def test_borders_and_intensities_do_not_give_the_place_away(dims, size):
    batch = batch_of_textures(1000, (3 * size + 8,) * dims, smoothed=2)
    for cues in ("edges", "intensities"):
        accuracy, chance = accuracy_and_chance(tiny("paper", dims, size=size, jitter=2), batch, cues)
        assert accuracy < chance, cues


def test_the_detector_would_find_neighbours_that_touch():
    batch = batch_of_textures(1000, (36, 36), smoothed=2)
    accuracy, chance = accuracy_and_chance(tiny("released", 2, size=12, jitter=0), batch, "edges")
    assert accuracy > 1.5 * chance  # only four of the eight neighbours share a border with the middle


@pytest.mark.parametrize("normalise", [False, True])
def test_a_ramp_of_brightness_gives_the_place_away_unless_patches_are_normalised(normalise):
    batch = batch_of_textures(1000, (24, 24))
    ramp = torch.linspace(0, 40, 24)
    shaded = Batch(**{**vars(batch), "voxels": (batch.voxels * 0.6 + ramp + ramp[:, None]).byte()})
    accuracy, chance = accuracy_and_chance(tiny("paper", 2, jitter=1, normalise=normalise), shaded, "intensities")
    assert (accuracy < chance) if normalise else (accuracy > 1.5 * chance)


def test_variants_differ_in_the_two_contradictions_and_in_nothing_else():
    paper, released = (PatchLocation.Config(variant=variant).model_dump() for variant in ("paper", "released"))
    assert {name for name in paper if paper[name] != released[name]} == {"variant", "patches"}
    different = {name: (value, released["patches"][name]) for name, value in paper["patches"].items()}
    assert {name: pair for name, pair in different.items() if pair[0] != pair[1]} == {
        "span": (0.95, 1.0),
        "gap": (1, 0),
    }


def test_a_flag_set_on_its_own_keeps_the_others_of_its_variant():
    config = PatchLocation.Config.model_validate({"variant": "released", "patches": {"jitter": 8}})
    assert (config.patches.jitter, config.patches.gap, config.patches.span) == (8, 0, 1.0)
    assert PatchLocation.Config.model_validate_json(config.model_dump_json()) == config


def test_the_paper_asks_for_one_of_26_places_of_volumes_and_of_8_of_images():
    for dims, places in ((3, 26), (2, 8)):
        with torch.device("meta"):
            encoder = PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=dims))
            method = PatchLocation(PatchLocation.Config(), encoder, FACTS)
        weights = [tuple(p.shape) for p in method.head.parameters() if p.ndim > 1]
        assert weights == [(2048, 2 * 256), (1024, 2048), (places, 1024)]


def test_misfits_are_refused():
    for grid in (2, 1, (3, 3, 4)):
        with pytest.raises(ValidationError, match=r"has no middle cell among others; give odd numbers, such as 3"):
            PatchLocation.Config.model_validate({"patches": {"grid": grid}})
    with pytest.raises(ValueError, match=r"jitter 3: the cells of samples of size \(12, 30\) are 3 voxels"):
        tiny("paper", 2).check_extent((12, 30))
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(2, 2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"patches\.size \(39, 39\): 39 is not a multiple of .* stride 16; use 32"):
        PatchLocation(PatchLocation.Config.model_validate({"patches": {"size": 39}}), encoder, FACTS)
