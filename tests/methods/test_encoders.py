"""Encoders: weights travel to MONAI's own classes, key by key, and mean the same there."""

from pathlib import Path

import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.densenet import DenseNet, DenseNet121
from monai.networks.nets.swin_unetr import SwinUNETR
from safetensors.torch import load_file, save_file

from methods.encoders import ENCODERS, DenseNetEncoder, SwinEncoder, UNetEncoder
from methods.encoders.unet import norm_layer

SIZES = {2: (64, 96), 3: (32, 64, 32)}
SWIN = {"feature_size": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4), "window_size": 5}
UNET = {"features": (4, 5, 6, 7, 8, 9)}
DENSENET = {"growth_rate": 3, "block_config": (1, 2, 1, 2), "init_features": 6}


def image(dims: int) -> torch.Tensor:
    return torch.randn((2, 1, *SIZES[dims]), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_swin_weights_load_strictly_into_swin_unetr_and_give_the_same_features(dims: int, v2: bool, tmp_path: Path):
    torch.manual_seed(0)
    encoder = SwinEncoder(SwinEncoder.Config(spatial_dims=dims, v2=v2, **SWIN)).eval()
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")

    torch.manual_seed(1)
    network = SwinUNETR(in_channels=1, out_channels=3, spatial_dims=dims, use_v2=v2, **SWIN).eval()
    network.swinViT.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)

    for ours, theirs in zip(
        encoder.features(image(dims)), network.swinViT(image(dims), network.normalize), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_unet_weights_load_into_basic_unet_and_give_the_same_features(norm: str, dims: int, tmp_path: Path):
    torch.manual_seed(0)
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=dims, norm=norm, **UNET)).eval()
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")

    torch.manual_seed(1)
    network = BasicUNet(spatial_dims=dims, in_channels=1, out_channels=3, norm=norm_layer(norm), **UNET).eval()
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


@pytest.mark.parametrize("dims", [2, 3])
def test_densenet_weights_load_strictly_into_densenet_s_features_and_give_the_same_maps(dims: int, tmp_path: Path):
    torch.manual_seed(0)
    encoder = DenseNetEncoder(DenseNetEncoder.Config(spatial_dims=dims, **DENSENET))
    encoder.features(image(dims))  # its batch norms now know statistics other than 0 and 1
    save_file(encoder.eval().state_dict(), tmp_path / "encoder.safetensors")

    torch.manual_seed(1)
    network = DenseNet(spatial_dims=dims, in_channels=1, out_channels=2, **DENSENET).eval()
    network.features.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)

    maps = encoder.features(image(dims))
    x = image(dims)
    for name, layer in network.features.named_children():
        if name.startswith("transition"):
            torch.testing.assert_close(maps[int(name[-1])], layer.relu(layer.norm(x)), rtol=0, atol=0)
        x = layer(x)
        if name == "relu0":
            torch.testing.assert_close(maps[0], x, rtol=0, atol=0)
    assert torch.equal(network.class_layers(maps[-1]), network(image(dims)))


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "parameters"), [(2, 6_953_856), (3, 11_286_528)])
def test_a_densenet_by_default_is_densenet_121(dims: int, parameters: int):
    with torch.device("meta"):
        encoder = DenseNetEncoder(DenseNetEncoder.Config(spatial_dims=dims, in_channels=3))
        theirs = DenseNet121(dims, in_channels=3, out_channels=2).features
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert {key: value.shape for key, value in encoder.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert (encoder.channels, encoder.stride) == ((64, 256, 512, 1024, 1024), 32)


def test_a_densenet_s_levels_hold_every_parameter_once():
    encoder = DenseNetEncoder(DenseNetEncoder.Config(spatial_dims=2, **DENSENET))
    in_levels = [id(p) for level in encoder.levels() for p in level.parameters()]
    assert sorted(in_levels) == sorted(id(p) for p in encoder.parameters())
    assert len(encoder.levels()) == 5


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


def test_a_densenet_s_dropout_acts_in_training_only():
    torch.manual_seed(0)
    encoder = DenseNetEncoder(DenseNetEncoder.Config(spatial_dims=2, dropout=0.5, **DENSENET))
    first, second = encoder.features(image(2))[-1], encoder.features(image(2))[-1]
    assert not torch.equal(first, second)
    encoder.eval()
    assert torch.equal(encoder.features(image(2))[-1], encoder.features(image(2))[-1])


def test_drop_path_acts_in_training_only():
    torch.manual_seed(0)
    encoder = SwinEncoder(SwinEncoder.Config(spatial_dims=2, drop_path=0.5, **SWIN))
    first, second = encoder.features(image(2))[-1], encoder.features(image(2))[-1]
    assert not torch.equal(first, second)
    encoder.eval()
    assert torch.equal(encoder.features(image(2))[-1], encoder.features(image(2))[-1])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "fields"), [("swin_unetr", SWIN), ("unet", UNET), ("densenet", DENSENET)])
def test_maps_have_the_channels_and_strides_that_the_encoder_declares(name: str, fields: dict, dims: int):
    encoder = ENCODERS[name](ENCODERS[name].Config(spatial_dims=dims, **fields))
    maps = encoder.features(image(dims))
    assert tuple(m.shape[1] for m in maps) == encoder.channels
    assert [s // m for s, m in zip(SIZES[dims], maps[-1].shape[2:], strict=True)] == [encoder.stride] * dims
    sizes = [m.shape[2] for m in maps]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), [("swin_unetr", SWIN), ("unet", UNET), ("densenet", DENSENET)])
def test_an_encoder_of_slices_has_the_maps_of_its_part_averaged_along_the_depth(name: str, fields: dict):
    torch.manual_seed(0)
    config = {"slices": {"name": name, "spatial_dims": 2, **fields}}
    encoder = ENCODERS["slices"](ENCODERS["slices"].Config.model_validate(config)).eval()
    volume = torch.rand(2, 1, 64, 64, 96)
    maps = encoder.features(volume)
    for level, found in enumerate(maps):
        stride = 64 // found.shape[3]
        assert found.shape[2:] == (64 // stride, 64 // stride, 96 // stride)
        for sample in range(2):
            flat = encoder.slices.features(volume[sample].transpose(0, 1))[level]
            expected = torch.stack([flat[at : at + stride].mean(0) for at in range(0, 64, stride)], dim=1)
            torch.testing.assert_close(found[sample], expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_of_slices_takes_no_other_slices_than_those_of_its_volumes():
    for fields in ({"spatial_dims": 3}, {"spatial_dims": 2, "in_channels": 3}):
        with pytest.raises(ValueError, match=r"slices: spatial_dims . and in_channels .; expected 2 and 1, those of"):
            ENCODERS["slices"].Config.model_validate({"slices": {"name": "unet", **fields}})


def test_heads_that_do_not_divide_their_channels_are_refused():
    with pytest.raises(ValueError, match=r"num_heads\[0\] 5 does not divide the stage's 12 channels"):
        SwinEncoder.Config(spatial_dims=2, feature_size=12, num_heads=(5, 6, 12, 24))
