"""Rotation: loss and gradient equal a slow reference; labels mean what the table says; cues give nothing away."""

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.views.rng import SampleRng
from methods.base import Views
from methods.encoders import PooledUNetEncoder, UNetEncoder
from methods.parts.turns import TURNS, turn
from methods.rotation import Rotation, draw_labels
from tests.batches import FACTS, eight_bit_batch, random_batch
from tests.cues import detect, intensity_cues, textures
from tests.encoders import Pixels
from tests.references import classification, rotation


def tiny(variant: str, spatial_dims: int, **fields: object) -> Rotation:
    torch.manual_seed(0)
    given = {"variant": variant, "side": 4, "hidden_dims": (5, 4), "dropout": 0.0} | fields
    return Rotation(Rotation.Config.model_validate(given), Pixels(spatial_dims), FACTS)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_loss_and_gradients_equal_the_reference(variant, dims):
    method = tiny(variant, dims, side=2).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    versions, weights = method.config.num_versions, {key: p.detach().numpy() for key, p in method.named_parameters()}
    images = torch.randn(versions, 6, 1, *[2] * dims, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, method.num_turns, (6, versions), generator=generator)

    losses = method.loss(Views(tuple(images), targets={"labels": labels}))
    losses.total.backward()

    features = images.detach().numpy().reshape(versions * 6, -1)
    rows = [int(labels[sample, version]) for version in range(versions) for sample in range(6)]
    assert abs(losses.total.item() - classification.loss(features, rows, weights)) < 1e-10
    expected = classification.gradients(features, rows, weights)
    assert images.grad is not None
    ours = {key: p.grad.numpy() for key, p in method.named_parameters() if p.grad is not None}
    for name, gradient in {**ours, "features": images.grad.numpy().reshape(versions * 6, -1)}.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-4, f"{name}: a zero gradient would prove nothing"


@pytest.mark.parametrize("dims", [2, 3])
def test_every_label_turns_voxels_to_where_its_matrix_takes_them(dims):
    image = np.random.default_rng(0).normal(size=[4] * dims)
    labels = np.arange(len(TURNS[dims]))
    turned = turn(torch.from_numpy(np.stack([image[None]] * len(labels))).float(), labels)
    for label in labels:
        np.testing.assert_array_equal(turned[label, 0].numpy(), rotation.turn(image, int(label)).astype(np.float32))


def test_the_ten_turns_of_volumes_are_distinct_proper_rotations():
    matrices = [np.rint(rotation.rotation_matrix(label, 3)) for label in range(10)]
    assert [np.linalg.det(matrix) for matrix in matrices] == pytest.approx([1.0] * 10)
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(matrices, 2))
    assert TURNS[3] == (
        *((count, (0, 1)) for count in (0, 1, 2, 3)),
        *((count, (1, 2)) for count in (3, 2, 1)),
        *((count, (0, 2)) for count in (3, 2, 1)),
    )


@pytest.mark.parametrize(("variant", "dims", "unturned"), [("paper", 3, 1), ("released", 3, 2), ("released", 2, 1)])
def test_label_9_of_volumes_is_left_unturned_as_released_and_only_there(variant, dims, unturned):
    method = tiny(variant, dims, num_versions=len(TURNS[dims]))
    batch = random_batch([(4,) * dims] * 3)
    views = method.views(batch, batch.rng(0))
    images, labels = torch.stack(views.images, dim=1), views.targets["labels"]
    stored = batch.voxels.float() / 255
    for sample in range(3):
        shown = {int(label): image for label, image in zip(labels[sample], images[sample], strict=True)}
        same = [label for label, image in sorted(shown.items()) if torch.allclose(image, stored[sample])]
        assert same == [0, 9][:unturned]


def test_versions_of_a_sample_are_of_one_cube_and_of_different_labels():
    method = tiny("paper", 3)
    batch = random_batch([(9, 6, 7), (5, 5, 8), (6, 7, 6)])
    views = method.views(batch, batch.rng(0))
    labels = views.targets["labels"].numpy()
    assert (labels[:, 0] != labels[:, 1]).all()
    for image, boxes, column in zip(views.images, views.boxes, labels.T, strict=True):
        for i, ((d0, h0, w0), (d1, h1, w1)) in enumerate(boxes):
            cube = batch.voxels[i, 0, d0:d1, h0:h1, w0:w1].numpy() / 255
            np.testing.assert_allclose(image[i, 0], rotation.turn(cube, int(column[i])), rtol=0, atol=1e-6)


def test_every_label_is_as_likely_as_any_other():
    labels = draw_labels(10, 2, SampleRng.for_samples(0, [0] * 20000, [str(i) for i in range(20000)]))
    shares = np.stack([np.bincount(column, minlength=10) for column in labels.T]) / 20000
    np.testing.assert_allclose(shares, 0.1, rtol=0, atol=4 * np.sqrt(0.1 * 0.9 / 20000))


@pytest.mark.parametrize("dims", [2, 3])
def test_borders_and_intensities_do_not_give_the_turn_away(dims):
    extents = [(11, 12, 13)[-dims:]] * 600
    batch = eight_bit_batch(textures(600, extents[0]), extents, tuple(map(str, range(600))))
    method = tiny("paper", dims, side=8)
    views = method.views(batch, batch.rng(0))
    labels = views.targets["labels"][:, 0].numpy()
    accuracy, chance = detect(intensity_cues(views.images[:1]), labels)
    assert accuracy < chance


def test_the_detector_would_find_a_padded_border():
    voxels = textures(600, (8, 8, 8))
    voxels[:, :, 0, :2] = 0
    batch = eight_bit_batch(voxels, [(8, 8, 8)] * 600, tuple(map(str, range(600))))
    views = tiny("paper", 3, side=8).views(batch, batch.rng(0))
    accuracy, chance = detect(intensity_cues(views.images[:1]), views.targets["labels"][:, 0].numpy())
    assert accuracy > 0.6 > 2 * chance


def test_variants_differ_in_the_two_contradictions_and_in_nothing_else():
    paper, released = (Rotation.Config(variant=variant).model_dump() for variant in ("paper", "released"))
    different = {name: (paper[name], released[name]) for name in paper if paper[name] != released[name]}
    assert different == {"variant": ("paper", "released"), "num_versions": (2, 1), "last_turned": (True, False)}


def test_a_flag_set_on_its_own_keeps_the_others_of_its_variant():
    config = Rotation.Config.model_validate({"variant": "released", "num_versions": 3})
    assert (config.num_versions, config.last_turned) == (3, False)
    assert Rotation.Config.model_validate_json(config.model_dump_json()) == config


def test_the_classifier_of_the_paper_has_the_known_widths():
    with torch.device("meta"):
        encoder = PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=3))
        method = Rotation(Rotation.Config(), encoder, FACTS)
    weights = [tuple(p.shape) for p in method.head.parameters() if p.ndim > 1]
    assert weights == [(2048, 16_384), (1024, 2048), (10, 1024)]
    assert [layer.p for layer in method.head if isinstance(layer, torch.nn.Dropout)] == [0.5, 0.5]


def test_what_cannot_be_cut_or_turned_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) exceeds samples of size \(9, 3, 9\); lower method\.side"):
        tiny("paper", 3).check_extent((9, 3, 9))
    with pytest.raises(ValueError, match=r"num_versions 5: there are 4 turns in 2D.*at most 4"):
        tiny("paper", 2, num_versions=5)
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, features=(2, 2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"side \(60, 60\): 60 is not a multiple of .* stride 16; use 64"):
        Rotation(Rotation.Config(side=60), encoder, FACTS)
    with pytest.raises(ValidationError, match="'paper' or 'released'"):
        Rotation.Config.model_validate({"variant": "printed"})
