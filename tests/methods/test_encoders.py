"""Encoders: weights travel to MONAI's own classes, key by key, and mean the same there."""

from pathlib import Path

import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.swin_unetr import SwinUNETR
from safetensors.torch import load_file, save_file

from methods.encoders import ENCODERS, SwinEncoder, UNetEncoder

SIZES = {2: (64, 96), 3: (32, 64, 32)}
SWIN = {"feature_size": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4), "window_size": 5}
UNET = {"features": (4, 5, 6, 7, 8, 9)}


def image(dims: int) -> torch.Tensor:
    return torch.randn((2, 1, *SIZES[dims]), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dims", [2, 3])
def test_swin_weights_load_strictly_into_swin_unetr_and_give_the_same_features(dims: int, tmp_path: Path):
    torch.manual_seed(0)
    encoder = SwinEncoder(SwinEncoder.Config(spatial_dims=dims, **SWIN)).eval()
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")

    torch.manual_seed(1)
    network = SwinUNETR(in_channels=1, out_channels=3, spatial_dims=dims, **SWIN).eval()
    network.swinViT.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)

    for ours, theirs in zip(
        encoder.features(image(dims)), network.swinViT(image(dims), network.normalize), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dims", [2, 3])
def test_unet_weights_load_into_basic_unet_and_give_the_same_features(dims: int, tmp_path: Path):
    torch.manual_seed(0)
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=dims, **UNET)).eval()
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")

    torch.manual_seed(1)
    network = BasicUNet(spatial_dims=dims, in_channels=1, out_channels=3, **UNET).eval()
    left = network.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=False)
    assert left.unexpected_keys == []
    assert {key.split(".")[0] for key in left.missing_keys} == {
        "upcat_4",
        "upcat_3",
        "upcat_2",
        "upcat_1",
        "final_conv",
    }

    x = network.conv_0(image(dims))
    for level, ours in enumerate(encoder.features(image(dims))):
        x = x if level == 0 else getattr(network, f"down_{level}")(x)
        assert torch.equal(ours, x)


def test_swin_of_the_thesis_has_768_channels_and_a_3_by_3_last_map_for_96_pixels():
    encoder = SwinEncoder(SwinEncoder.Config(spatial_dims=2)).eval()
    with torch.no_grad():
        last = encoder.features(torch.zeros(1, 1, 96, 96))[-1]
    assert tuple(last.shape) == (1, 768, 3, 3)


def test_swin_features_are_normalised_over_their_channels():
    encoder = SwinEncoder(SwinEncoder.Config(spatial_dims=2, **SWIN)).eval()
    for features in encoder.features(image(2)):
        torch.testing.assert_close(features.mean(1), torch.zeros_like(features[:, 0]), rtol=0, atol=1e-5)
        variance = features.var(1, unbiased=False)
        assert variance.median() > 0.99


def test_drop_path_acts_in_training_only():
    torch.manual_seed(0)
    encoder = SwinEncoder(SwinEncoder.Config(spatial_dims=2, drop_path=0.5, **SWIN))
    first, second = encoder.features(image(2))[-1], encoder.features(image(2))[-1]
    assert not torch.equal(first, second)
    encoder.eval()
    assert torch.equal(encoder.features(image(2))[-1], encoder.features(image(2))[-1])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "fields"), [("swin_unetr", SWIN), ("unet", UNET)])
def test_maps_have_the_channels_and_strides_that_the_encoder_declares(name: str, fields: dict, dims: int):
    encoder = ENCODERS[name](ENCODERS[name].Config(spatial_dims=dims, **fields))
    maps = encoder.features(image(dims))
    assert tuple(m.shape[1] for m in maps) == encoder.channels
    assert [s // m for s, m in zip(SIZES[dims], maps[-1].shape[2:], strict=True)] == [encoder.stride] * dims
    sizes = [m.shape[2] for m in maps]
    assert sizes == sorted(sizes, reverse=True)


def test_heads_that_do_not_divide_their_channels_are_refused():
    with pytest.raises(ValueError, match=r"num_heads\[0\] 5 does not divide the stage's 12 channels"):
        SwinEncoder.Config(spatial_dims=2, feature_size=12, num_heads=(5, 6, 12, 24))
