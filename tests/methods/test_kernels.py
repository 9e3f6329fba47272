"""Kernels of photographs in volumes: slow references, and what each rule keeps as it was."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv3d

from methods.encoders import ENCODERS, ResNet3DEncoder, ResNetEncoder
from methods.encoders.base import Encoder
from methods.encoders.kernels import colours_as_depth, for_channels, in_the_middle, repeated
from methods.encoders.transfer import fitted
from tests.references import inflation
from tests.references.resnet3d import resnet3d_18
from tests.released_weights import filled, resnet_shapes, torchvision_shapes

WIDTH = 4
RELEASED = {key: value.double() for key, value in filled(torchvision_shapes(18, WIDTH)).items()}
UNPOOLED = (2, 1, 1, 2, 2, 2)


def kernel_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loaded(encoder: Encoder, weights: dict[str, Tensor], **how: str) -> Encoder:
    """Return the encoder with the weights, in float64 so that nothing is lost on the way."""
    tensors = fitted(weights, encoder.double().state_dict(), **how).tensors
    encoder.load_state_dict({**encoder.state_dict(), **tensors})
    return encoder.eval()


def volumes(**fields: object) -> ResNet3DEncoder:
    return ResNet3DEncoder(ResNet3DEncoder.Config(init_features=WIDTH, **fields))


def photographs(**fields: object) -> ResNetEncoder:
    return ResNetEncoder(ResNetEncoder.Config(spatial_dims=2, depth=18, init_features=WIDTH, **fields))


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_inflated_kernels_are_those_of_slow_references(depth: int) -> None:
    kernel = kernel_of(3, 2, 3, 5)
    np.testing.assert_allclose(repeated(kernel, depth), inflation.i3d(kernel.numpy(), depth), rtol=1e-15)
    np.testing.assert_array_equal(in_the_middle(kernel, depth), inflation.vdt(kernel.numpy(), depth))
    if depth > 1:
        colours = kernel_of(4, 3, 5, 5)
        np.testing.assert_array_equal(colours_as_depth(colours, depth), inflation.vdt_stem(colours.numpy(), depth))


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3), (3, 5), (4, 2)])
def test_the_response_to_an_image_that_is_the_same_in_all_channels_stays(given: int, wanted: int) -> None:
    kernel, image = kernel_of(5, given, 3, 3), kernel_of(2, 1, 8, 9)
    turned = for_channels(kernel, wanted)
    np.testing.assert_allclose(turned, inflation.for_channels(kernel.numpy(), wanted), rtol=1e-12, atol=1e-15)
    before, after = (conv2d(image.expand(-1, one.shape[1], -1, -1), one) for one in (kernel, turned))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    assert torch.equal(for_channels(kernel, given), kernel)


def test_a_grey_network_sees_in_a_grey_image_what_the_colour_network_sees_in_three_copies() -> None:
    colour = loaded(photographs(in_channels=3), RELEASED, layout="torchvision")
    grey = loaded(photographs(in_channels=1), RELEASED, layout="torchvision")
    shown = loaded(photographs(in_channels=1, grey_to_rgb=True), RELEASED, layout="torchvision")
    image = torch.randn(2, 1, 64, 64).double()
    for ours, theirs, same in zip(
        grey.features(image), colour.features(image.expand(-1, 3, -1, -1)), shown.features(image), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert torch.equal(same, theirs)


def test_planes_that_are_all_alike_give_the_2d_network_s_maps_far_from_the_ends_of_an_i3d_network() -> None:
    flat = loaded(photographs(in_channels=1), RELEASED, layout="torchvision")
    deep = loaded(volumes(), RELEASED, layout="torchvision", inflate="i3d")
    image = torch.randn(1, 1, 32, 64).double()
    # 3 planes of the stem's half kernel, 1 of the pool's and 1 for each of 16 convolutions reach in from either end.
    reach = 3 + 1 + 16
    maps = deep.features(image.unsqueeze(2).expand(-1, -1, 2 * reach + 1, -1, -1))
    for found, expected in zip(maps, flat.features(image), strict=True):
        torch.testing.assert_close(found[:, :, reach], expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(maps[0][:, :, 0], maps[0][:, :, reach])


def test_an_i3d_network_is_the_slow_one_with_kernels_inflated_number_by_number() -> None:
    deep = loaded(volumes(depth_strides="vanilla"), RELEASED, layout="torchvision", inflate="i3d")
    slow = {key: value.numpy() for key, value in RELEASED.items()}
    slow["conv1.weight"] = inflation.for_channels(slow["conv1.weight"], 1)
    deep_of = {7: 7, 3: 3, 1: 1}
    slow = {key: inflation.i3d(v, deep_of[v.shape[-1]]) if v.ndim == 4 else v for key, v in slow.items()}
    volume = torch.randn(1, 1, 32, 32, 32).double()
    expected = resnet3d_18(volume.numpy(), slow, volumes(depth_strides="vanilla").config.strides)
    for found, reference in zip(deep.features(volume), expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), reference, rtol=1e-9, atol=1e-9)


def test_the_middle_plane_of_three_colours_gives_the_2d_network_s_map_up_to_the_pool() -> None:
    """A pool of three planes takes the largest of all three: from there on, the planes mix."""
    flat = loaded(photographs(in_channels=3), RELEASED, layout="torchvision")
    deep = loaded(volumes(), RELEASED, layout="torchvision", inflate="vdt")
    image = torch.randn(2, 3, 32, 64).double()
    ours, theirs = deep.features(image.unsqueeze(1)), flat.features(image)
    assert [found.shape[2] for found in ours] == [3] * 5
    torch.testing.assert_close(ours[0][:, :, 1], theirs[0], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(ours[1][:, :, 1], theirs[1])


def test_without_a_pool_the_middle_plane_gives_every_map_of_the_2d_network() -> None:
    deep = loaded(volumes(plane_strides=UNPOOLED), RELEASED, layout="torchvision", inflate="vdt")
    flat = loaded(photographs(in_channels=3), RELEASED, layout="torchvision")
    flat.maxpool = nn.Identity()
    image = torch.randn(2, 3, 32, 64).double()
    for ours, theirs in zip(deep.features(image.unsqueeze(1)), flat.features(image), strict=True):
        torch.testing.assert_close(ours[:, :, 1], theirs, rtol=1e-9, atol=1e-9)


def test_each_plane_of_a_volume_sees_its_neighbours_as_colours() -> None:
    deep = loaded(volumes(plane_strides=UNPOOLED), RELEASED, layout="torchvision", inflate="vdt")
    flat = loaded(photographs(in_channels=3), RELEASED, layout="torchvision")
    flat.maxpool = nn.Identity()
    volume = torch.randn(1, 1, 6, 32, 32).double()
    maps = deep.features(volume)
    for plane in range(1, 5):
        for ours, theirs in zip(maps, flat.features(volume[:, 0, plane - 1 : plane + 2]), strict=True):
            torch.testing.assert_close(ours[:, :, plane], theirs, rtol=1e-9, atol=1e-9)


def test_an_acs_network_takes_the_2d_kernels_and_its_axial_third_is_the_2d_network_s() -> None:
    acs = loaded(volumes(convolutions="acs"), RELEASED, layout="torchvision", inflate="acs")
    kernel = RELEASED["conv1.weight"].sum(1, keepdim=True)
    volume = torch.randn(1, 1, 5, 16, 16).double()
    axial = conv2d(volume[0].transpose(0, 1), kernel[:2], stride=2, padding=3)
    torch.testing.assert_close(acs.get_submodule("conv1")(volume)[0, :2], axial.transpose(0, 1))
    assert torch.equal(acs.get_parameter("layer4.1.conv2.weight"), RELEASED["layer4.1.conv2.weight"])


def test_a_bias_before_a_norm_is_the_same_as_a_lower_mean() -> None:
    """MONAI's shortcuts have a bias by default, this project's do not."""
    shapes = resnet_shapes(18, 3, 1, WIDTH)
    biases = {
        key.replace("weight", "bias"): shape[:1]
        for key, shape in shapes.items()
        if key.endswith("downsample.0.weight")
    }
    weights = {key: value.double() for key, value in filled({**shapes, **biases}).items()}
    encoder = loaded(volumes(depth_strides="vanilla"), weights, layout="monai")
    shortcut, x = encoder.get_submodule("layer3.0.downsample"), torch.randn(1, 2 * WIDTH, 4, 4, 4).double()
    kernel, bias = (weights[f"layer3.0.downsample.0.{key}"] for key in ("weight", "bias"))
    mean, variance, scale, shift = (
        weights[f"layer3.0.downsample.1.{key}"].view(1, -1, 1, 1, 1)
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    expected = (conv3d(x, kernel, bias, stride=2) - mean) / (variance + 1e-5).sqrt() * scale + shift
    torch.testing.assert_close(shortcut(x), expected, rtol=1e-9, atol=1e-9)


def test_own_weights_of_other_2d_networks_inflate_too() -> None:
    fields = {"features": (4, 4, 8, 8, 8, 4), "in_channels": 1}
    flat, deep = (ENCODERS["unet"](ENCODERS["unet"].Config(spatial_dims=dims, **fields)).eval() for dims in (2, 3))
    found = fitted(flat.state_dict(), deep.state_dict(), inflate="i3d")
    deep.load_state_dict(found.tensors)
    assert found.transfer.initial == found.transfer.left == ()
    image = torch.randn(1, 1, 16, 32)
    volume = image.unsqueeze(2).expand(-1, -1, 48, -1, -1)
    torch.testing.assert_close(deep.features(volume)[0][:, :, 24], flat.features(image)[0], rtol=1e-4, atol=1e-5)
