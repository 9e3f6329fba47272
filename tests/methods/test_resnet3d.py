"""3D residual networks: counts of the paper, an independent slow reference, and forms that share every weight."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from methods.downstream.networks import segmentation_network
from methods.encoders import ResNet3DEncoder, ResNetEncoder
from methods.encoders.pseudo3d import ORDERS, PseudoBlock
from methods.encoders.resnet import monai_arguments
from methods.encoders.resnet3d import ARCHITECTURES, vanilla_resnet
from methods.papers import PAPER_NETWORKS
from orchestrator.machine.parameters import build_network
from orchestrator.training.checkpoint import CheckpointError, export_encoder, load_encoder
from tests.references.resnet3d import resnet3d_18

# Seed 003: parameters with one input channel and 1000 classes, and Table II's billions of multiply-adds.
PARAMETERS = {
    "resnet3d_18": 33_673_000,
    "resnet3d_34": 63_982_632,
    "resnet3d_50": 48_204_072,
    "resnet3d_v1c_18": 33_734_984,
}
TABLE_II = {
    "resnet_18": 1.82,
    "resnet_34": 3.68,
    "resnet_50": 4.12,
    "resnet3d_18": 15.99,
    "resnet3d_34": 32.65,
    "resnet3d_50": 23.93,
}
# Released for segmentation of nodules (no pool); for lesions on 9 slices, whose maps have 9, 5, 3 and 1.
FORMS: dict[str, dict[str, Any]] = {
    "kept": {"depth_strides": "kept"},
    "vanilla": {"depth_strides": "vanilla"},
    "nodules": {"depth_strides": "vanilla", "plane_strides": (1, 1, 1, 2, 1, 2)},
    "lesions": {"depth_strides": (1, 1, 1, 2, 2, 3)},
    "first stage": {"depth_strides": (1, 1, 2, 1, 1, 1)},
}
EACH_NETWORK = list(ARCHITECTURES)


def config_of(network: str = "resnet3d_18", form: str = "kept", **fields: Any) -> ResNet3DEncoder.Config:
    return ResNet3DEncoder.Config(**{"network": network, "init_features": 4, **FORMS[form], **fields})


def encoder_of(network: str = "resnet3d_18", form: str = "kept", **fields: Any) -> ResNet3DEncoder:
    torch.manual_seed(0)
    return ResNet3DEncoder(config_of(network, form, **fields)).eval()


def shapes_of(config: ResNet3DEncoder.Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        encoder = ResNet3DEncoder(config)
    return {key: tuple(value.shape) for key, value in encoder.state_dict().items()}


def filled(encoder: nn.Module) -> dict[str, np.ndarray]:
    """Fill all floating weights by a rule, in float64; return them as arrays. Variances stay positive."""
    encoder.double()
    for place, (key, value) in enumerate(encoder.state_dict().items()):
        if value.is_floating_point():
            wave = torch.sin(1.7 * torch.arange(value.numel(), dtype=torch.float64) + place).view(value.shape)
            around = 1 if value.ndim == 1 and not key.endswith(("bias", "mean")) else 0
            value.copy_(around + wave * (0.5 if value.ndim == 1 else 2 / value[0].numel() ** 0.5))
    return {key: value.numpy() for key, value in encoder.state_dict().items()}


@pytest.mark.slow
def test_parameters_with_a_classifier_of_1000_classes_are_the_papers_and_multiply_adds_within_one_percent() -> None:
    found = {network.name: build_network(network) for network in PAPER_NETWORKS}
    assert {name: found[name]["parameters"] for name in PARAMETERS} == PARAMETERS
    for name, billions in TABLE_II.items():
        assert found[name]["multiply_adds"] / 1e9 == pytest.approx(billions, rel=0.01), name
    assert found["p3d_63"] == {"parameters": 29_330_728, "multiply_adds": 13_183_483_904}


@pytest.mark.parametrize("form", FORMS)
def test_maps_of_filled_weights_are_those_of_a_slow_reference(form: str) -> None:
    encoder = encoder_of(form=form, init_features=8)
    weights, images = filled(encoder), torch.randn(1, 1, 9, 32, 48).double()
    expected = resnet3d_18(images.numpy(), weights, encoder.config.strides)
    for found, reference in zip(encoder.features(images), expected, strict=True):
        assert np.abs(reference).max() > 0.1
        np.testing.assert_allclose(found.detach().numpy(), reference, rtol=1e-9, atol=1e-9)


def test_group_norm_is_that_of_a_slow_reference_in_every_norm() -> None:
    encoder = encoder_of(norm="group", norm_groups=4, init_features=8)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in encoder.modules())
    weights, images = filled(encoder), torch.randn(2, 1, 3, 32, 32).double()
    expected = resnet3d_18(images.numpy(), weights, encoder.config.strides, groups=4)
    for found, reference in zip(encoder.features(images), expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", ["resnet3d_18", "resnet3d_34", "resnet3d_50"])
def test_the_vanilla_form_is_monai_s_network_in_keys_and_maps(network: str) -> None:
    encoder = encoder_of(network, "vanilla")
    same = vanilla_resnet(encoder.config)
    assert same is not None
    monai = ResNet(**monai_arguments(same)).eval()
    monai.load_state_dict(encoder.state_dict(), strict=True)
    other = ResNetEncoder(same).eval()
    other.load_state_dict(encoder.state_dict(), strict=True)
    images = torch.randn(2, 1, 32, 64, 32)
    maps = encoder.features(images)
    assert all(torch.equal(*pair) for pair in zip(maps, other.features(images), strict=True))
    torch.testing.assert_close(monai(images), maps[-1].flatten(2).mean(2))


@pytest.mark.parametrize("fields", [{"form": "kept"}, {"network": "p3d_63"}, {"norm": "group", "norm_groups": 2}])
def test_other_forms_have_no_counterpart(fields: dict[str, Any]) -> None:
    assert vanilla_resnet(config_of(**{"form": "vanilla", **fields})) is None


@pytest.mark.parametrize("network", EACH_NETWORK)
@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_depth_is_kept_whatever_it_is(network: str, depth: int) -> None:
    encoder = encoder_of(network)
    with torch.no_grad():
        maps = encoder.features(torch.randn(1, 1, depth, 64, 32))
    assert [tuple(found.shape[2:]) for found in maps] == [(depth, 64 // 2**n, 32 // 2**n) for n in range(1, 6)]
    assert tuple(found.shape[1] for found in maps) == encoder.channels
    assert (encoder.strides, encoder.stride) == ((1, 32, 32), 32)


@pytest.mark.parametrize(
    ("form", "depths", "widths", "strides"),
    [
        ("vanilla", [32, 16, 8, 4, 2], [16, 8, 4, 2, 1], (32, 32, 32)),
        ("nodules", [64, 64, 32, 32, 16], [32, 32, 16, 16, 8], (4, 4, 4)),
        ("lesions", [64, 64, 32, 16, 6], [16, 8, 4, 2, 1], (12, 32, 32)),
    ],
)
def test_maps_have_the_strides_that_a_task_asks_for(
    form: str, depths: list[int], widths: list[int], strides: tuple[int, ...]
) -> None:
    encoder = encoder_of(form=form)
    with torch.no_grad():
        maps = encoder.features(torch.randn(1, 1, 64, 32, 32))
    assert [tuple(found.shape[2:]) for found in maps] == [
        (depth, width, width) for depth, width in zip(depths, widths, strict=True)
    ]
    assert encoder.strides == strides


def test_nine_slices_of_a_lesion_have_the_depths_of_the_paper() -> None:
    with torch.no_grad():
        maps = encoder_of(form="lesions").features(torch.randn(1, 1, 9, 32, 32))
    assert [found.shape[2] for found in maps[1:]] == [9, 5, 3, 1]


@pytest.mark.slow
@pytest.mark.parametrize("network", EACH_NETWORK)
def test_all_forms_share_every_name_and_shape(network: str) -> None:
    kept = shapes_of(config_of(network))
    assert len(kept) > 100
    assert all(shapes_of(config_of(network, form)) == kept for form in FORMS)


@pytest.mark.parametrize("network", EACH_NETWORK)
def test_weights_pass_to_another_form_whole_and_are_reported(network: str, tmp_path: Path) -> None:
    kept, vanilla = encoder_of(network), ResNet3DEncoder(config_of(network, "vanilla"))
    filled(kept)
    export_encoder(tmp_path, kept.float(), {})
    transfer = load_encoder(tmp_path, vanilla)
    given = kept.state_dict()
    assert str(transfer) == f"{len(given)} of {len(given)} tensors taken"
    assert set(transfer.taken) == set(given)
    assert all(torch.equal(value, given[key]) for key, value in vanilla.state_dict().items())


@pytest.mark.parametrize(
    "fields", [{"network": "resnet3d_34"}, {"norm": "group", "norm_groups": 2}, {"init_features": 8}]
)
def test_weights_of_another_network_are_refused_by_their_names(fields: dict[str, Any], tmp_path: Path) -> None:
    export_encoder(tmp_path, encoder_of(), {})
    with pytest.raises(CheckpointError, match=r"\d+ of \d+ keys do not match \([a-z]"):
        load_encoder(tmp_path, encoder_of(**fields))


@pytest.mark.parametrize("order", ORDERS)
def test_a_pseudo_3d_block_joins_its_convolutions_in_its_order(order: str) -> None:
    torch.manual_seed(0)
    block, x = PseudoBlock(8, 2, (1, 1, 1), None, "batch", order).eval(), torch.randn(2, 8, 3, 5, 4)

    def part(number: int, x: Tensor) -> Tensor:
        return block.get_submodule(f"bn{number}")(block.get_submodule(f"conv{number}")(x))

    narrow = part(1, x).relu()
    within = part(2, narrow).relu()
    across = part(3, narrow if order == "B" else within).relu()
    joined = {"A": across, "B": within + across, "C": within + across}[order]
    torch.testing.assert_close(block(x), (part(4, joined) + x).relu())
    assert tuple(block.conv2.kernel_size + block.conv3.kernel_size) == (1, 3, 3, 3, 1, 1)


def test_the_orders_of_p3d_63_take_turns_over_all_stages() -> None:
    blocks = [module for module in encoder_of("p3d_63").modules() if isinstance(module, PseudoBlock)]
    assert "".join(block.order for block in blocks) == "ABCABCABCABCABCA"


def test_blocks_that_begin_as_the_identity_leave_a_rectified_map_as_it_is() -> None:
    for network in EACH_NETWORK:
        encoder = encoder_of(network, zero_init_residual=True)
        x = torch.rand(1, encoder.channels[-1], 3, 4, 4)
        assert torch.equal(encoder.get_submodule("layer4")[-1](x), x)
        assert not torch.equal(encoder_of(network).get_submodule("layer4")[-1](x), x)


@pytest.mark.parametrize("network", EACH_NETWORK)
def test_levels_hold_every_parameter_once(network: str) -> None:
    encoder = encoder_of(network)
    in_levels = [id(p) for level in encoder.levels() for p in level.parameters()]
    assert sorted(in_levels) == sorted(id(p) for p in encoder.parameters())
    assert len(encoder.levels()) == len(encoder.channels) == 5


@pytest.mark.parametrize("form", FORMS)
def test_a_u_net_gives_a_logit_for_every_voxel_in_every_form(form: str) -> None:
    encoder = encoder_of(form=form)
    size = tuple(2 * stride for stride in encoder.strides)
    with torch.no_grad():
        logits = segmentation_network(encoder, 3).eval()(torch.zeros(1, 1, *size))
    assert tuple(logits.shape) == (1, 3, *size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"norm": "group"},
            r"norm_groups 32 does not divide the 4 channels of the narrowest norm; lower norm_groups, or raise init",
        ),
        (
            {"network": "resnet3d_v1c_18", "init_features": 5},
            r"init_features 5: the stem of resnet3d_v1c_18 begins with half as many channels; use an even number.* 6",
        ),
    ],
)
def test_channels_that_do_not_divide_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**fields)
