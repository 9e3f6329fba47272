"""The pooled U-Net: the paper's number of parameters, its maps and their order of layers, and its decoder."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.downstream.networks import segmentation_network
from methods.encoders import PooledUNetEncoder
from methods.parts.flat_map import flat_dim

TINY = {"features": (2, 3, 4, 5, 6), "dropout": 0.0}


def tiny(dims: int) -> PooledUNetEncoder:
    torch.manual_seed(0)
    encoder = PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=dims, **TINY)).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None
            module.running_mean.uniform_(-0.5, 0.5)
    return encoder


@pytest.mark.parametrize(("channels", "parameters"), [(1, 3_535_440), (2, 3_535_872), (4, 3_536_736)])
def test_the_papers_encoder_has_the_known_number_of_parameters(channels, parameters):
    with torch.device("meta"):
        encoder = PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=3, in_channels=channels))
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_a_cube_of_128_voxels_becomes_a_vector_of_16384():
    with torch.device("meta"):
        encoder = PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=3))
    assert flat_dim(encoder, (128, 128, 128)) == 16_384
    assert (encoder.channels, encoder.stride) == ((16, 32, 64, 128, 256, 256), 32)


def two_convolutions(x: Tensor, level: nn.Module) -> Tensor:
    """Apply a level by its weights: convolution, ReLU and batch norm, twice."""
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    weights = level.state_dict()
    for first, norm in ((0, 2), (4, 6)):
        x = F.relu(convolve(x, weights[f"{first}.weight"], weights[f"{first}.bias"], padding=1))
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(weights[f"{norm}.{name}"] for name in names))
    return x


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_are_two_convolutions_of_the_pooled_map_before_and_the_last_is_pooled_only(dims):
    encoder, pool = tiny(dims), (F.max_pool2d, F.max_pool3d)[dims - 2]
    x = torch.randn(2, 1, *[32] * dims, generator=torch.Generator().manual_seed(0))
    maps = encoder.features(x)
    for number, level in enumerate(encoder.convolutions):
        x = two_convolutions(pool(x, 2) if number else x, level)
        torch.testing.assert_close(maps[number], x)
    torch.testing.assert_close(maps[5], pool(x, 2))


def test_dropout_lies_between_the_two_convolutions_in_training_only():
    encoder = PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=2, features=(2, 3, 4, 5, 6)))
    level = encoder.convolutions[0]
    assert isinstance(level, nn.Sequential)
    assert [type(layer).__name__ for layer in level] == [
        "Conv2d", "ReLU", "BatchNorm2d", "Dropout", "Conv2d", "ReLU", "BatchNorm2d"
    ]  # fmt: skip
    assert [layer.p for layer in level if isinstance(layer, nn.Dropout)] == [0.5]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_decoder_gives_every_voxel_its_logits_and_trains_the_encoder_itself(dims):
    encoder = tiny(dims).train()
    network = segmentation_network(encoder, num_classes=3)
    logits = network(torch.randn(2, 1, *[32] * dims, generator=torch.Generator().manual_seed(0)))
    assert tuple(logits.shape) == (2, 3, *[32] * dims)
    logits.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    ours = {id(p) for p in network.parameters()}
    assert {id(p) for p in encoder.parameters()} <= ours


def test_the_papers_decoder_has_128_64_32_and_16_channels():
    with torch.device("meta"):
        network = segmentation_network(PooledUNetEncoder(PooledUNetEncoder.Config(spatial_dims=3)), num_classes=4)
    widths = [module.out_channels for module in network.modules() if isinstance(module, nn.ConvTranspose3d)]
    assert widths == [128, 64, 32, 16]
