"""ResNets: keys and shapes of torchvision's, weights that load both ways, and maps that are MONAI's."""

from pathlib import Path

import pytest
import torch
from monai.networks.nets.resnet import ResNet

from methods.downstream.networks import segmentation_network
from methods.downstream.unet import UNet
from methods.encoders import ResNetEncoder
from methods.encoders.resnet import monai_arguments
from orchestrator.training.checkpoint import CheckpointError, load_encoder
from tests.released_weights import torchvision_shapes

PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032}
SMALL = {"spatial_dims": 2, "depth": 18, "init_features": 4}


def without_classifier(state: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in state.items() if not key.startswith("fc.")}


@pytest.mark.parametrize("depth", PARAMETERS)
@pytest.mark.parametrize("fields", [{"in_channels": 3}, {"in_channels": 1, "grey_to_rgb": True}])
def test_keys_and_shapes_are_those_of_torchvision_without_its_classifier(depth: int, fields: dict) -> None:
    with torch.device("meta"):
        encoder = ResNetEncoder(ResNetEncoder.Config(spatial_dims=2, depth=depth, **fields))
    found = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    assert found == without_classifier(torchvision_shapes(depth))
    assert sum(p.numel() for p in encoder.parameters()) == PARAMETERS[depth]


@pytest.mark.slow
def test_a_file_with_torchvision_s_keys_loads_and_one_with_a_classifier_is_refused_by_its_keys(
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator) for key, shape in torchvision_shapes(18).items()}
    encoder = ResNetEncoder(ResNetEncoder.Config(spatial_dims=2, depth=18, grey_to_rgb=True))
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=r"2 of 120 keys do not match \(fc\.bias, fc\.weight\)"):
        load_encoder(tmp_path / "resnet18.pth", encoder)
    trunk = {key: value for key, value in state.items() if not key.startswith("fc.")}
    torch.save(trunk, tmp_path / "trunk.pth")
    load_encoder(tmp_path / "trunk.pth", encoder)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, trunk[key].to(value.dtype)), key


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("dims", [2, 3])
def test_weights_load_strictly_into_monai_s_class_and_give_the_same_maps(depth: int, dims: int) -> None:
    torch.manual_seed(0)
    config = ResNetEncoder.Config(spatial_dims=dims, depth=depth, init_features=4)
    encoder = ResNetEncoder(config)
    images = torch.randn(2, 1, *(64, 96, 32)[:dims])
    encoder.features(images)  # its batch norms now know statistics other than 0 and 1
    encoder.eval()
    network = ResNet(**monai_arguments(config)).eval()
    network.load_state_dict(encoder.state_dict(), strict=True)
    x = network.act(network.bn1(network.conv1(images)))
    maps = encoder.features(images)
    for number, found in enumerate(maps):
        if number:
            x = getattr(network, f"layer{number}")(network.maxpool(x) if number == 1 else x)
        assert torch.equal(found, x)
    assert tuple(found.shape[1] for found in maps) == encoder.channels
    assert [found.shape[2] for found in maps] == [32, 16, 8, 4, 2]
    torch.testing.assert_close(network(images), maps[-1].flatten(2).mean(2))


def test_a_grey_image_is_shown_as_three_equal_channels() -> None:
    torch.manual_seed(0)
    grey = ResNetEncoder(ResNetEncoder.Config(**SMALL, grey_to_rgb=True)).eval()
    rgb = ResNetEncoder(ResNetEncoder.Config(**SMALL, in_channels=3)).eval()
    rgb.load_state_dict(grey.state_dict())
    images = torch.randn(2, 1, 64, 32)
    for found, expected in zip(grey.features(images), rgb.features(torch.cat([images] * 3, dim=1)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert grey.in_channels == 1
    with pytest.raises(ValueError, match=r"grey_to_rgb with in_channels 2: only a grey image of 1 channel"):
        ResNetEncoder.Config(**SMALL, grey_to_rgb=True, in_channels=2)


def test_maps_are_not_changed_by_the_stages_after_them() -> None:
    """MONAI's activations write in place."""
    torch.manual_seed(0)
    encoder = ResNetEncoder(ResNetEncoder.Config(**SMALL)).eval()
    x, then = torch.randn(1, 1, 64, 64), []
    maps = encoder.features(x)
    for level in encoder.levels():
        x = level(x.clone())
        then.append(x.clone())
    assert all(torch.equal(found, expected) for found, expected in zip(maps, then, strict=True))


def test_levels_hold_every_parameter_once() -> None:
    encoder = ResNetEncoder(ResNetEncoder.Config(**SMALL))
    in_levels = [id(p) for level in encoder.levels() for p in level.parameters()]
    assert sorted(in_levels) == sorted(id(p) for p in encoder.parameters())
    assert len(encoder.levels()) == 5


@pytest.mark.slow
def test_a_2d_u_net_takes_every_stage_of_a_resnet_50_as_a_skip_map() -> None:
    with torch.device("meta"):
        encoder = ResNetEncoder(ResNetEncoder.Config(spatial_dims=2))
        network = segmentation_network(encoder, 3)
        logits = network(torch.zeros(2, 1, 64, 96, device="meta"))
    assert isinstance(network, UNet)
    assert [block[0].in_channels for block in network.blocks] == [256 + 1024, 128 + 512, 64 + 256, 32 + 64, 16]
    assert tuple(logits.shape) == (2, 3, 64, 96)
