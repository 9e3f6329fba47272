"""The pyramid transformer: maps equal a slow reference in 2D and 3D, sizes are the released ones, weights switch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from methods.downstream.networks import segmentation_network
from methods.encoders import PyramidTransformerEncoder
from tests.references import pyramid_transformer as reference

SMALL = {
    "stem_dim": 3,
    "stage_dims": (4, 6, 8, 10),
    "depths": (1, 2, 1, 1),
    "num_heads": (1, 2, 2, 5),
    "image_size": (32, 64),
    "volume_size": (16, 32, 64),
    "switchable": False,
}
SIZES = {2: (32, 64), 3: (16, 32, 64)}


def encoder_of(dims: int, **fields: Any) -> PyramidTransformerEncoder:
    torch.manual_seed(0)
    encoder = PyramidTransformerEncoder.Config.model_validate({"spatial_dims": dims, **SMALL, **fields})
    return PyramidTransformerEncoder(encoder).double()


def images_of(size: tuple[int, ...], count: int = 1) -> Tensor:
    return torch.randn(count, 1, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_and_class_token_equal_the_reference_and_so_do_those_of_the_other_dimension(dims):
    encoder = encoder_of(3, switchable=True)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    (image,) = images_of(SIZES[dims])
    with torch.no_grad():
        expected, token = reference.maps(image, encoder.state_dict(), SMALL["num_heads"])
        for found, wanted in zip(encoder.features(image[None]), expected, strict=True):
            torch.testing.assert_close(found[0], wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(encoder.class_tokens(image[None])[0][0], token, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"spatial_dims": 2, "in_channels": 3, "switchable": False}, 17_321_312),
        ({"spatial_dims": 3, "switchable": False}, 24_644_064),
        ({"spatial_dims": 3}, 28_523_888 - 2 * 32 * 7 * 7),  # images of 1 channel, not 3
        ({"spatial_dims": 2, "in_channels": 3, "depths": (1, 1, 1, 1), "switchable": False}, 6_825_568),
        ({"spatial_dims": 3, "depths": (1, 1, 1, 1), "switchable": False}, 11_374_304),
    ],
)
def test_there_are_as_many_parameters_as_in_the_released_networks(fields, parameters):
    with torch.device("meta"):
        encoder = PyramidTransformerEncoder(PyramidTransformerEncoder.Config.model_validate(fields))
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize(("dims", "size", "steps"), [(2, (64, 32), (2, 2)), (3, (32, 64, 32), (1, 2, 2))])
def test_maps_of_another_size_have_the_channels_and_strides_that_are_declared(dims, size, steps):
    encoder = encoder_of(dims)
    maps = encoder.features(images_of(size))
    assert (encoder.channels, encoder.steps) == ((3, 4, 6, 8, 10), (steps, *[(2,) * dims] * 4))
    for level, found in enumerate(maps):
        assert tuple(found.shape[1:]) == (
            encoder.channels[level],
            *(length // (step * 2**level) for length, step in zip(size, steps, strict=True)),
        )
    assert [s // m for s, m in zip(size, maps[-1].shape[2:], strict=True)] == list(encoder.strides)
    with torch.no_grad():
        assert tuple(segmentation_network(encoder, 3).double()(images_of(size)).shape) == (1, 3, *size)


def test_weights_of_a_switchable_encoder_of_volumes_are_those_of_one_of_images():
    volumes, images = encoder_of(3, switchable=True), encoder_of(2, switchable=True)
    images.load_state_dict(volumes.state_dict(), strict=True)
    image = images_of(SIZES[2])
    assert torch.equal(volumes.features(image)[-1], images.features(image)[-1])


def test_what_is_for_the_other_dimension_learns_only_where_it_is_asked_to():
    encoder = encoder_of(3, switchable=True)
    still = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert still == {name for name, _ in encoder.named_parameters() if ".2D" in name}
    assert len(still) == 3 * 5 + 4 + 2 * 4  # embeddings, positions, and convolutions of stages that reduce
    assert {id(p) for p in encoder.unreached()} == {id(p) for p in encoder.parameters() if not p.requires_grad}
    encoder.learn_images()
    assert all(p.requires_grad for p in encoder.parameters())
    assert not any(".2D" in name for name, _ in encoder_of(3).named_parameters())


def test_images_in_chunks_give_the_maps_and_class_tokens_of_one_pass():
    encoder = encoder_of(2).train()
    images = images_of(SIZES[2], 3)
    whole = [*encoder.features(images), *encoder.features(images, encoder.class_tokens)]
    encoder.num_chunks = 2
    for found, expected in zip(
        [*encoder.features(images), *encoder.features(images, encoder.class_tokens)], whole, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_levels_hold_every_parameter_once():
    encoder = encoder_of(3, switchable=True)
    held = [id(p) for level in encoder.levels() for p in level.parameters()]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())
    assert len(encoder.levels()) == 5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_heads": (1, 4, 2, 5)}, r"num_heads\[1\] 4 does not divide stage_dims\[1\] 6; change one"),
        ({"reductions": (6, 4, 3, 1)}, r"reductions\[2\] 3: .* has 2 places along an axis; expected 2 or less"),
        ({"image_size": (32, 40)}, r"image_size \(32, 40\): 40 is not a multiple of .* 32; use 32"),
        ({"volume_size": (8, 32, 32), "switchable": True}, r"volume_size \(8, 32, 32\): 8 is not .* 16; use 16"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(fields, said):
    with pytest.raises(ValueError, match=said):
        encoder_of(2, **fields)
