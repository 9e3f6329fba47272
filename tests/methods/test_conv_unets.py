"""nnU-Net's encoders: they are the package's own, key by key and map by map."""

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from pydantic import ValidationError
from torch import Tensor, nn

from methods.downstream.networks import segmentation_network
from methods.encoders import ENCODERS, Encoder
from methods.encoders.conv_unets import doubled_keys

BLOCKS = {"plain_conv_unet": "n_conv_per_stage", "residual_encoder_unet": "n_blocks_per_stage"}
NETWORKS = {"plain_conv_unet": PlainConvUNet, "residual_encoder_unet": ResidualEncoderUNet}
SIZES = {2: (16, 24), 3: (8, 16, 24)}
SMALL: dict[int, dict[str, Any]] = {
    2: {"stage_strides": (1, 2, (2, 1)), "kernel_sizes": (3, (1, 3), 3)},
    3: {"stage_strides": (1, (1, 2, 2), 2), "kernel_sizes": ((1, 3, 3), 3, 3)},
}
WIDTHS = {"features": (4, 6, 8), "blocks": (1, 2, 1)}


def small(name: str, dims: int, **fields: Any) -> Encoder:
    kind = ENCODERS[name]
    return kind(kind.Config.model_validate({"name": name, "spatial_dims": dims, **WIDTHS, **SMALL[dims], **fields}))


def package_network(name: str, dims: int, norm: str) -> nn.Module:
    """Build the package's whole network by hand, as a script without this project would."""
    convolution = (nn.Conv2d, nn.Conv3d)[dims - 2]
    norms = {"instance": (nn.InstanceNorm2d, nn.InstanceNorm3d), "batch": (nn.BatchNorm2d, nn.BatchNorm3d)}
    ones, deep = [1] * dims, {2: ([2, 2], [2, 1]), 3: ([1, 2, 2], [2, 2, 2])}[dims]
    kernels = {2: [[3, 3], [1, 3], [3, 3]], 3: [[1, 3, 3], [3] * 3, [3] * 3]}[dims]
    return NETWORKS[name](
        input_channels=2,
        n_stages=3,
        features_per_stage=[4, 6, 8],
        conv_op=convolution,
        kernel_sizes=kernels,
        strides=[ones, *deep],
        num_classes=3,
        n_conv_per_stage_decoder=[1, 1],
        conv_bias=True,
        norm_op=norms[norm][dims - 2],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **{BLOCKS[name]: [1, 2, 1]},
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_load_strictly_into_the_package_s_network_and_give_the_same_maps(
    name: str, norm: str, dims: int
) -> None:
    torch.manual_seed(0)
    encoder = small(name, dims, in_channels=2, norm=norm, **({"zero_init_residual": False} if "res" in name else {}))
    images = torch.randn(2, 2, *SIZES[dims])
    encoder.train().features(images)  # batch norms now know statistics other than 0 and 1
    theirs = package_network(name, dims, norm).get_submodule("encoder")
    theirs.load_state_dict(doubled_keys(encoder.state_dict()), strict=True)
    assert set(encoder.state_dict()) < set(theirs.state_dict())
    for ours, other in zip(encoder.eval().features(images), theirs.eval()(images), strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize(
    ("name", "parameters"), [("plain_conv_unet", 14_025_120), ("residual_encoder_unet", 90_296_576)]
)
def test_defaults_are_nnu_net_s_six_stages_in_3d(name: str, parameters: int) -> None:
    with torch.device("meta"):
        encoder = ENCODERS[name](ENCODERS[name].Config(spatial_dims=3))
        theirs = NETWORKS[name](
            input_channels=1,
            n_stages=6,
            features_per_stage=[32, 64, 128, 256, 320, 320],
            conv_op=nn.Conv3d,
            kernel_sizes=[[3, 3, 3] for _ in range(6)],
            strides=[[1, 1, 1], *[[2, 2, 2]] * 5],
            num_classes=2,
            n_conv_per_stage_decoder=[1] * 5,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            **{BLOCKS[name]: [1, 3, 4, 6, 6, 6] if "res" in name else [2] * 6},
        ).encoder
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in theirs.parameters()) == parameters
    shapes = {key: value.shape for key, value in doubled_keys(encoder.state_dict()).items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert encoder.strides == (32, 32, 32)


@pytest.mark.parametrize("name", NETWORKS)
def test_strides_steps_and_channels_are_those_of_the_maps(name: str) -> None:
    encoder = small(name, 3)
    assert (encoder.strides, encoder.stride) == ((2, 4, 4), 4)
    assert encoder.steps == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    maps = encoder.features(torch.zeros(1, 1, *SIZES[3]))
    assert [tuple(one.shape[1:]) for one in maps] == [(4, 8, 16, 24), (6, 8, 8, 12), (8, 4, 4, 6)]


def test_a_residual_encoder_begins_with_its_blocks_as_the_identity() -> None:
    begun = small("residual_encoder_unet", 2).state_dict()
    last = [value for key, value in begun.items() if key.endswith("conv2.norm.weight")]
    assert len(last) == 4
    assert not torch.stack([value.abs().sum() for value in last]).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_decoder_gives_every_voxel_its_logits_and_trains_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    encoder = small(name, 3, norm="batch", **({"zero_init_residual": False} if "res" in name else {}))
    logits: Tensor = segmentation_network(encoder, 3)(torch.randn(2, 1, *SIZES[3]))
    assert tuple(logits.shape) == (2, 3, *SIZES[3])
    logits.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"blocks": (1, 1)}, r"blocks has 2 values, features 3; give one for each stage"),
        ({"stage_strides": (1, 2)}, r"stage_strides has 2 values, features 3"),
        ({"kernel_sizes": (3, 3, 3, 3)}, r"kernel_sizes has 4 values, features 3"),
        ({"stage_strides": (1, (2, 2), 2)}, r"stage_strides has \(2, 2\) for 3 axes; give one number, or 3"),
        ({"kernel_sizes": 4}, r"kernel_sizes has 4: an even kernel shifts its map; use odd ones, such as 3"),
    ],
)
def test_stages_and_axes_that_do_not_agree_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        small("plain_conv_unet", 3, **fields)
