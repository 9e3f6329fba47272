"""Segmentation networks are MONAI's own, with the encoder inside: keys, outputs and weights agree."""

import pytest
import torch
from monai.networks.nets import BasicUNet, SwinUNETR
from torch import nn

from methods.downstream.networks import SegmentationEncoder, segmentation_network
from methods.downstream.unet import UNet
from methods.encoders import DenseNetEncoder, SwinEncoder, UNetEncoder
from methods.encoders.pooled_unet import TwoConvolutions
from methods.encoders.unet import norm_layer

CLASSES = 3
WIDTHS = (4, 4, 8, 8, 16, 4)


def encoder_of(kind: str, dims: int, **fields: object) -> SegmentationEncoder:
    torch.manual_seed(dims)
    if kind == "unet":
        return UNetEncoder(UNetEncoder.Config(spatial_dims=dims, features=WIDTHS, **fields))
    small = {"feature_size": 12, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4, **fields}
    return SwinEncoder(SwinEncoder.Config(spatial_dims=dims, **small))


def monai_network(kind: str, dims: int, norm: str = "instance") -> nn.Module:
    """Build MONAI's class by hand, as a script without this project would."""
    if kind == "unet":
        layer = norm_layer(norm)
        return BasicUNet(spatial_dims=dims, in_channels=1, out_channels=CLASSES, features=WIDTHS, norm=layer)
    return SwinUNETR(
        in_channels=1,
        out_channels=CLASSES,
        feature_size=12,
        depths=(2, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
        window_size=4,
        spatial_dims=dims,
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("kind", "fields"), [("swin_unetr", {}), ("unet", {"norm": "instance"}), ("unet", {"norm": "batch"})]
)
def test_a_network_loads_strictly_into_monai_s_class_and_predicts_the_same(kind, fields, dims) -> None:
    network = segmentation_network(encoder_of(kind, dims, **fields), CLASSES).eval()
    theirs = monai_network(kind, dims, **fields).eval()
    theirs.load_state_dict(network.state_dict(), strict=True)
    images = torch.randn(1, 1, *(64, 32, 32)[:dims])
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["swin_unetr", "unet"])
def test_the_network_holds_the_encoder_itself(kind: str) -> None:
    encoder = encoder_of(kind, 2)
    network = segmentation_network(encoder, CLASSES)
    inside = {id(p) for p in network.parameters()}
    assert {id(p) for p in encoder.parameters()} < inside
    prefix = "swinViT." if kind == "swin_unetr" else ""
    for name, value in encoder.state_dict().items():
        assert network.state_dict()[prefix + name].data_ptr() == value.data_ptr()


def test_training_reaches_the_encoder_through_every_map() -> None:
    encoder = encoder_of("unet", 2)
    network = segmentation_network(encoder, CLASSES)
    network(torch.randn(2, 1, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_a_densenet_s_decoder_gives_every_voxel_its_logits_and_trains_the_encoder_itself(dims: int) -> None:
    torch.manual_seed(0)
    config = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "init_features": 8}
    encoder = DenseNetEncoder(DenseNetEncoder.Config(spatial_dims=dims, in_channels=3, **config))
    network = segmentation_network(encoder, CLASSES)
    logits = network(torch.randn(2, 3, *(64, 32, 32)[:dims]))
    assert tuple(logits.shape) == (2, CLASSES, *(64, 32, 32)[:dims])
    logits.square().mean().backward()
    assert {id(p) for p in encoder.parameters()} < {id(p) for p in network.parameters()}
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_densenet_121_s_decoder_takes_the_map_of_each_size_and_the_last_block_has_none() -> None:
    with torch.device("meta"):
        network = segmentation_network(DenseNetEncoder(DenseNetEncoder.Config(spatial_dims=2)), CLASSES)
    assert isinstance(network, UNet)
    joined = [block[0].in_channels for block in network.blocks if isinstance(block, TwoConvolutions)]
    assert joined == [256 + 1024, 128 + 512, 64 + 256, 32 + 64, 16]


def test_a_width_that_swin_unetr_cannot_have_is_refused_with_the_next_one() -> None:
    encoder = encoder_of("swin_unetr", 2, feature_size=16)
    with pytest.raises(ValueError, match=r"feature_size 16: .* multiples of 12 only; set encoder.feature_size to 24"):
        segmentation_network(encoder, CLASSES)
