"""V-Net: MONAI's own class loads encoder and network strictly, and computes the same."""

import pytest
import torch
from monai.networks.nets.vnet import VNet

from methods.downstream.networks import segmentation_network
from methods.encoders import VNetEncoder


@pytest.mark.parametrize(("dims", "channels"), [(2, 2), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_the_network_loads_strictly_into_monai_s_vnet_and_predicts_the_same(dims, channels):
    torch.manual_seed(0)
    encoder = VNetEncoder(VNetEncoder.Config(spatial_dims=dims, in_channels=channels))
    network = segmentation_network(encoder, 3).eval()
    theirs = VNet(dims, channels, 3).eval()
    theirs.load_state_dict(network.state_dict(), strict=True)
    images = torch.randn(1, channels, *[16] * (dims - 1), 32)
    with torch.no_grad():
        assert torch.equal(network(images), theirs(images))
        for ours, name in zip(encoder.features(images), ("in_tr", "down_tr32"), strict=False):
            images = theirs.get_submodule(name)(images)
            assert torch.equal(ours, images)


def test_maps_have_the_channels_and_strides_that_the_encoder_declares():
    encoder = VNetEncoder(VNetEncoder.Config(spatial_dims=2, init_features=4))
    maps = encoder.features(torch.randn(2, 1, 32, 48))
    assert [tuple(one.shape[1:]) for one in maps] == [(4 * 2**n, 32 // 2**n, 48 // 2**n) for n in range(5)]
    assert (encoder.channels, encoder.stride) == ((4, 8, 16, 32, 64), 16)


def test_levels_hold_every_parameter_once_and_the_network_holds_the_encoder_itself():
    encoder = VNetEncoder(VNetEncoder.Config(spatial_dims=2, init_features=2))
    held = [id(p) for level in encoder.levels() for p in level.parameters()]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())
    assert {*held} < {id(p) for p in segmentation_network(encoder, 3).parameters()}


def test_dropout_takes_whole_channels_in_training_only():
    torch.manual_seed(0)
    encoder = VNetEncoder(VNetEncoder.Config(spatial_dims=2, init_features=2))
    images = torch.randn(1, 1, 32, 32)
    assert not torch.equal(encoder.features(images)[-1], encoder.features(images)[-1])
    encoder.eval()
    assert torch.equal(encoder.features(images)[-1], encoder.features(images)[-1])


def test_channels_that_the_first_stage_cannot_repeat_are_refused():
    with pytest.raises(ValueError, match=r"init_features 16 is not a multiple of in_channels 3, .* use 18"):
        VNetEncoder.Config(spatial_dims=2, in_channels=3)
