"""ACS convolutions: an independent slow reference in value and gradient, in all strides, alone and in a network."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods.encoders import ResNet3DEncoder, ResNetEncoder
from methods.encoders.acs import ACSConv3d, view_channels
from methods.encoders.resnet3d import vanilla_resnet
from tests.methods.test_resnet3d import FORMS, encoder_of, filled
from tests.references.acs import acs_convolve, acs_gradients, as_cubes
from tests.references.resnet3d import resnet3d_18

STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (3, 1, 2)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(("channels", "side"), [((2, 7), 3), ((1, 8), 7), ((3, 2), 3), ((2, 4), 1), ((2, 1), 3)])
def test_values_and_gradients_are_those_of_a_slow_reference(
    channels: tuple[int, int], side: int, stride: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    convolution = ACSConv3d(*channels, side, stride).double()
    x = torch.randn(2, channels[0], 5, 6, 4, dtype=torch.float64, requires_grad=True)
    found = convolution(x)
    weight = convolution.weight.detach().numpy()
    expected = acs_convolve(x.detach().numpy(), weight, stride)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(found)
    (found * upstream).sum().backward()
    of_x, of_weight = acs_gradients(x.detach().numpy(), weight, stride, upstream.numpy())
    assert x.grad is not None
    assert convolution.weight.grad is not None
    assert np.abs(of_weight).max() > 1
    np.testing.assert_allclose(x.grad.numpy(), of_x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(convolution.weight.grad.numpy(), of_weight, rtol=1e-10, atol=1e-12)


def test_thirds_of_the_channels_see_axial_coronal_and_sagittal_planes() -> None:
    assert [view_channels(number) for number in (64, 512, 8, 7, 2, 1)] == [
        (22, 21, 21),
        (171, 171, 170),
        (3, 3, 2),
        (3, 2, 2),
        (1, 1, 0),
        (1, 0, 0),
    ]
    convolution = ACSConv3d(1, 3, 3, (1, 1, 1))
    nn.init.ones_(convolution.weight)
    point = torch.zeros(1, 1, 5, 5, 5)
    point[0, 0, 2, 2, 2] = 1
    for across, spread in enumerate(convolution(point)[0]):
        places = spread.nonzero()
        assert len(places) == 9
        assert (places[:, across] == 2).all()


def test_a_kernel_without_a_middle_is_refused() -> None:
    with pytest.raises(ValueError, match=r"side 4 of a kernel is even; expected an odd one"):
        ACSConv3d(1, 1, 4, (1, 1, 1))


@pytest.mark.parametrize("form", FORMS)
def test_a_network_of_acs_convolutions_is_the_slow_one_whose_kernels_are_cubes_with_one_plane(form: str) -> None:
    encoder = encoder_of(form=form, init_features=4, convolutions="acs")
    weights, images = filled(encoder), torch.randn(1, 1, 9, 32, 48).double()
    cubes = {key: as_cubes(value) if value.ndim == 4 else value for key, value in weights.items()}
    expected = resnet3d_18(images.numpy(), cubes, encoder.config.strides)
    for found, reference in zip(encoder.features(images), expected, strict=True):
        assert np.abs(reference).max() > 0.1
        np.testing.assert_allclose(found.detach().numpy(), reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_names_shapes_and_number_of_weights_are_those_of_the_2d_network(depth: int) -> None:
    with torch.device("meta"):
        flat = ResNetEncoder(ResNetEncoder.Config(spatial_dims=2, depth=depth))
        acs = ResNet3DEncoder(ResNet3DEncoder.Config(network=f"resnet3d_{depth}", convolutions="acs"))
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (flat, acs)]
    assert shapes[0] == shapes[1]
    assert not any(isinstance(module, nn.Conv3d) for module in acs.modules())


def test_scratch_begins_with_weights_drawn_for_a_2d_kernel_s_fan_out() -> None:
    encoder = encoder_of(init_features=32, convolutions="acs")
    weight = encoder.get_parameter("layer4.1.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    first, again = (encoder_of(convolutions="acs").state_dict() for _ in range(2))
    assert all(torch.equal(value, again[key]) for key, value in first.items())


def test_acs_networks_have_no_counterpart_at_monai() -> None:
    fields: dict[str, Any] = {"depth_strides": "vanilla", "init_features": 4}
    assert vanilla_resnet(ResNet3DEncoder.Config(**fields)) is not None
    assert vanilla_resnet(ResNet3DEncoder.Config(**fields, convolutions="acs")) is None


def test_pseudo_3d_blocks_have_no_acs_convolutions() -> None:
    with pytest.raises(ValueError, match=r"convolutions acs with network p3d_63, whose kernels lie within slices"):
        ResNet3DEncoder.Config(network="p3d_63", convolutions="acs")
