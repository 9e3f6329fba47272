"""Files of other projects: every tensor that an encoder should take, where it came from, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from methods.encoders import ENCODERS
from methods.encoders.base import Encoder
from methods.encoders.transfer import MOST_NAMED, Transfer, few, fitted, fitting_layouts
from tests.released_weights import (
    Shapes,
    cspr_shapes,
    filled,
    kinetics_shapes,
    medicalnet_shapes,
    monai_shapes,
    prefixed,
    resnet_shapes,
    torchvision_shapes,
)

WIDTH = 4
State = dict[str, Tensor]


def encoder_of(name: str, **fields: Any) -> Encoder:
    kind = ENCODERS[name]
    return kind(kind.Config.model_validate({"name": name, "init_features": WIDTH, **fields}))


def resnet(depth: int, dims: int, **fields: Any) -> Encoder:
    return encoder_of("resnet", depth=depth, spatial_dims=dims, **fields)


def resnet3d(depth: int | str, **fields: Any) -> Encoder:
    return encoder_of("resnet3d", network=f"resnet3d_{depth}", **fields)


def is_head(key: str) -> bool:
    return key.removeprefix("module.").removeprefix("encoder.").startswith(("fc.", "conv_seg.", "head."))


SAME = {
    "torchvision": ("", lambda depth: torchvision_shapes(depth, WIDTH), 3),
    "monai": ("", lambda depth: monai_shapes(depth, 3, 2, WIDTH), 2),
    "wrapped monai": ("encoder.", lambda depth: monai_shapes(depth, 3, 2, WIDTH, "encoder."), 2),
    "medicalnet": ("module.", lambda depth: prefixed("module.", {**resnet_shapes(depth, 3, 1, WIDTH), **DECODER}), 1),
    "kinetics": ("module.", lambda depth: kinetics_shapes(depth, WIDTH), 3),
    "kinetics of one gpu": ("", lambda depth: kinetics_shapes(depth, WIDTH, prefix=""), 3),
    "cspr": ("backbone.", lambda depth: cspr_shapes(depth, WIDTH), 1),
}
DECODER = {"conv_seg.0.weight": (8, 2, 2, 2, 2), "conv_seg.1.running_mean": (2,)}


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("target", ["resnet", "resnet3d"])
def test_every_tensor_is_taken_unchanged_where_the_networks_are_the_same(target: str, kind: str, depth: int) -> None:
    prefix, shapes, channels = SAME[kind]
    (layout,) = {"torchvision", "monai", "medicalnet", "kinetics", "cspr"} & set(kind.split())
    flat = layout == "torchvision"
    encoder = resnet(depth, 2 if flat else 3, in_channels=channels)
    if target == "resnet3d":
        encoder = resnet3d(depth, in_channels=channels, convolutions="acs" if flat else "full")
    weights, names = filled(shapes(depth)), list(encoder.state_dict())
    found = fitted(weights, encoder.state_dict(), layout, "acs" if flat and target == "resnet3d" else None)
    heads = tuple(key for key in weights if is_head(key))
    assert len(heads) >= 2
    assert found.transfer == Transfer(tuple(names), left=heads)
    assert set(found.tensors) == set(names)
    for name in names:
        assert torch.equal(found.tensors[name], weights[f"{prefix}{name}"]), name


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("layout", ["medicalnet", "kinetics"])
def test_shortcuts_of_type_a_leave_the_encoder_s_own_at_their_initial_values(layout: str, depth: int) -> None:
    of_kinetics = kinetics_shapes(depth, WIDTH, "A")
    weights = filled(medicalnet_shapes(depth, WIDTH) if layout == "medicalnet" else of_kinetics)
    encoder = resnet3d(depth)
    transfer = fitted(weights, encoder.state_dict(), layout).transfer
    shortcuts = [f"layer{stage}.0.downsample" for stage in (2, 3, 4)]
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert list(transfer.initial) == [
        name for one in shortcuts for name in (f"{one}.0.weight", *(f"{one}.1.{key}" for key in norms))
    ]
    assert len(transfer.taken) + len(transfer.initial) == len(encoder.state_dict())


def test_a_deep_stem_keeps_its_initial_values_with_the_norm_behind_it() -> None:
    encoder = resnet3d("v1c_18")
    transfer = fitted(filled(torchvision_shapes(18, WIDTH)), encoder.state_dict(), "torchvision", "i3d").transfer
    own = [name for name in encoder.state_dict() if name.startswith(("conv1.", "bn1."))]
    assert len(own) == 3 + 3 * 5
    assert list(transfer.initial) == own
    norm = {f"bn1.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert set(transfer.left) == {"conv1.weight", *norm, "fc.weight", "fc.bias"}


def test_svd_net_s_own_deep_stem_is_taken_under_its_names() -> None:
    encoder, weights = resnet3d("v1c_18"), filled(cspr_shapes(18, WIDTH, deep_stem=True))
    found = fitted(weights, encoder.state_dict(), "cspr")
    assert (found.transfer.initial, found.transfer.left) == ((), ("head.fc.weight", "head.fc.bias"))
    for ours, theirs in {"conv1.0": "stem.0.conv", "conv1.3": "stem.1.conv", "conv1.6": "stem.2.conv"}.items():
        assert torch.equal(found.tensors[f"{ours}.weight"], weights[f"backbone.{theirs}.weight"])
    for ours, theirs in {"conv1.1": "stem.0.bn", "conv1.4": "stem.1.bn", "bn1": "stem.2.bn"}.items():
        assert torch.equal(found.tensors[f"{ours}.running_var"], weights[f"backbone.{theirs}.running_var"])


def test_files_without_counters_of_batches_leave_the_encoder_s_at_zero() -> None:
    """As torchvision's of before torch 0.4.1, which are still the ones that are downloaded for ResNet-18."""
    shapes = {key: shape for key, shape in torchvision_shapes(18, WIDTH).items() if "num_batches" not in key}
    encoder = resnet(18, 2, in_channels=3)
    transfer = fitted(filled(shapes), encoder.state_dict(), "torchvision").transfer
    assert len(transfer.taken) == 100
    assert len(transfer.initial) == 20
    assert all(name.endswith("num_batches_tracked") for name in transfer.initial)


def test_half_precision_becomes_the_encoder_s_own() -> None:
    weights = {key: value.half() for key, value in filled(torchvision_shapes(18, WIDTH)).items()}
    encoder = resnet(18, 2)
    found = fitted(weights, encoder.state_dict(), "torchvision").tensors
    assert {key: value.dtype for key, value in found.items()} == {
        key: value.dtype for key, value in encoder.state_dict().items()
    }
    kernel = weights["conv1.weight"].float().sum(1, keepdim=True)
    torch.testing.assert_close(found["conv1.weight"], kernel)


def test_a_report_counts_what_was_taken_and_changed_and_names_the_rest() -> None:
    weights, encoder = filled(torchvision_shapes(18, WIDTH)), resnet3d(18)
    transfer = fitted(weights, encoder.state_dict(), "torchvision", "i3d").transfer
    assert str(transfer) == (
        "120 of 120 tensors taken, 20 of them changed (conv1.weight summed over 3 input channels, repeated over 7 "
        "planes and divided by 7; layer1.0.conv1.weight, layer1.0.conv2.weight, layer1.1.conv1.weight, "
        "layer1.1.conv2.weight and 12 more repeated over 3 planes and divided by 3; layer2.0.downsample.0.weight, "
        "layer3.0.downsample.0.weight, layer4.0.downsample.0.weight as one plane); left in the file: fc.weight, "
        "fc.bias"
    )
    lines = transfer.every_key().splitlines()
    assert len(lines) == 122
    assert "changed  conv1.weight: summed over 3 input channels, repeated over 7 planes and divided by 7" in lines
    assert lines.count("taken    bn1.running_mean") == lines.count("left     fc.bias") == 1
    assert str(fitted(weights, encoder.state_dict(), "torchvision", "vdt").transfer).startswith(
        "120 of 120 tensors taken, 20 of them changed (conv1.weight with its 3 colours as the middle of 7 planes; "
    )


def test_a_report_says_how_channels_and_biases_changed() -> None:
    weights = filled(monai_shapes(18, 3, 1, WIDTH, bias=True))
    changed = fitted(weights, resnet3d(18, in_channels=3).state_dict(), "monai").transfer.changed
    bias = "less the bias of the convolution before it"
    assert changed == {
        "conv1.weight": "of 1 input channel, divided among 3",
        **{f"layer{stage}.0.downsample.1.running_mean": bias for stage in (2, 3, 4)},
    }
    of_two = filled(monai_shapes(18, 3, 2, WIDTH))
    ways = fitted(of_two, resnet3d(18, in_channels=3).state_dict(), "monai").transfer.changed
    assert ways == {"conv1.weight": "summed over 2 input channels, divided among 3"}


def test_a_few_names_are_listed_and_the_others_counted() -> None:
    names = [f"n{number}" for number in range(MOST_NAMED + 2)]
    assert few(names[:-1]) == "n0, n1, n2, n3, n4"
    assert few(names) == "n0, n1, n2, n3 and 2 more"
    assert str(Transfer(("a",), ("b", "c"))) == "1 of 3 tensors taken; with initial values: b, c"


TORCHVISION, MEDICALNET = torchvision_shapes(18, WIDTH), medicalnet_shapes(18, WIDTH)
KINETICS = kinetics_shapes(18, WIDTH)


@pytest.mark.parametrize(
    ("shapes", "encoder", "how", "said"),
    [
        (
            MEDICALNET,
            ("resnet3d", {}),
            ("kinetics", None),
            r"layout kinetics expects a first kernel of 3 dimensions on 3 input channels; found "
            r"module\.conv1\.weight of shape \(4, 1, 7, 7, 7\)",
        ),
        (
            KINETICS,
            ("resnet3d", {}),
            ("medicalnet", None),
            r"layout medicalnet expects a first kernel of 3 dimensions on 1 input channel; found .*\(4, 3, 7, 7",
        ),
        (
            TORCHVISION,
            ("resnet3d", {}),
            ("kinetics", None),
            r"a first kernel of 3 dimensions on 3 input channels; found conv1\.weight of shape \(4, 3, 7, 7\)",
        ),
        (
            {"conv_0.conv_0.conv.weight": (4, 1, 3, 3), "conv_0.conv_0.conv.bias": (4,)},
            ("resnet", {"spatial_dims": 2}),
            ("torchvision", None),
            r"layout torchvision expects keys of a residual network, such as layer1\.0\.conv1\.weight; found "
            r"conv_0\.conv_0\.conv\.weight, conv_0\.conv_0\.conv\.bias",
        ),
        (
            {**prefixed("student.", TORCHVISION), **prefixed("teacher.", TORCHVISION)},
            ("resnet", {"spatial_dims": 2}),
            ("torchvision", None),
            r"expects one residual network; found 2, under student\., teacher\.; save the one that is meant",
        ),
        (
            torchvision_shapes(34, WIDTH),
            ("resnet", {"spatial_dims": 2}),
            ("torchvision", None),
            r"96 keys have no place in the encoder \(layer1\.2\.conv1\.weight, .* and 92 more\); the file has "
            r"3, 4, 6, 3 blocks of 2 convolutions, the encoder 2, 2, 2, 2 blocks of 2 convolutions; take an",
        ),
        (
            torchvision_shapes(50, WIDTH),
            ("resnet", {"spatial_dims": 2}),
            ("torchvision", None),
            r"the file has 3, 4, 6, 3 blocks of 3 convolutions, the encoder 2, 2, 2, 2 blocks of 2 convolutions",
        ),
        (
            torchvision_shapes(18, 8),
            ("resnet", {"spatial_dims": 2}),
            ("torchvision", None),
            r"100 of 120 tensors have other shapes \(conv1\.weight \(8, 3, 7, 7\), the encoder's \(4, 1, 7, 7\); .* "
            r"and 96 more\); take an encoder of the same network and width \(init_features\)",
        ),
        (
            KINETICS,
            ("resnet3d", {"norm": "group", "norm_groups": 2}),
            ("kinetics", None),
            r"60 keys have no place in the encoder \(bn1\.running_mean, .*: its norms are batch norms; set "
            r"encoder\.norm=batch",
        ),
        (
            {key: shape for key, shape in KINETICS.items() if "layer3.1" not in key},
            ("resnet3d", {}),
            ("kinetics", None),
            r"10 tensors of the encoder are not in the file \(layer3\.1\.conv1\.weight, ",
        ),
        (
            {key: shape for key, shape in KINETICS.items() if "layer3.0.downsample" not in key},
            ("resnet3d", {}),
            ("kinetics", None),
            r"5 tensors of the encoder are not in the file \(layer3\.0\.downsample\.0\.weight, ",
        ),
        (
            TORCHVISION,
            ("resnet3d", {}),
            ("torchvision", None),
            r"conv1\.weight is 2D, the encoder's 3D; set inflate: i3d or vdt, or take an encoder resnet3d of "
            r"convolutions: acs",
        ),
        (
            monai_shapes(18, 3, 1, WIDTH),
            ("resnet3d", {}),
            ("monai", "i3d"),
            r"inflate i3d turns 2D kernels into 3D ones; conv1\.weight is 3D; leave inflate out",
        ),
        (
            monai_shapes(18, 3, 1, WIDTH),
            ("resnet3d", {"convolutions": "acs"}),
            ("monai", "acs"),
            r"conv1\.weight is 3D, the encoder's 2D; take a 3D encoder with full convolutions",
        ),
        (
            monai_shapes(18, 2, 1, WIDTH),
            ("resnet3d", {}),
            ("monai", "vdt"),
            r"inflate vdt turns a kernel of 3 colours .*; conv1\.weight is \(4, 1, 7, 7\), the encoder's "
            r"\(4, 1, 7, 7, 7\); set inflate: i3d",
        ),
    ],
)
def test_what_no_rule_covers_is_refused_by_what_came_and_what_was_expected(
    shapes: Shapes, encoder: tuple[str, dict[str, Any]], how: tuple[Any, Any], said: str
) -> None:
    name, fields = encoder
    own = encoder_of(name, **({"depth": 18} if name == "resnet" else {}), **fields).state_dict()
    with pytest.raises(ValueError, match=said):
        fitted(filled(shapes), own, *how)


def test_the_layouts_that_fit_are_found() -> None:
    volumes, slices = resnet3d(18).state_dict(), resnet(18, 2).state_dict()
    assert fitting_layouts(filled(MEDICALNET), volumes) == ["monai", "medicalnet", "cspr"]
    assert fitting_layouts(filled(KINETICS), volumes) == ["monai", "kinetics"]
    assert fitting_layouts(filled(TORCHVISION), slices) == ["torchvision", "monai"]
    assert fitting_layouts(filled(TORCHVISION), volumes) == []
    assert fitting_layouts(filled(TORCHVISION), volumes, "i3d") == ["torchvision", "monai"]
    assert fitting_layouts(slices, slices) == ["raydiology", "monai"]


def test_weights_in_the_project_s_own_layout_differ_in_nothing_that_nobody_asked_for() -> None:
    colour, grey = resnet(18, 2, in_channels=3).state_dict(), resnet(18, 2).state_dict()
    with pytest.raises(ValueError, match=r"1 of 120 tensors have other shapes \(conv1\.weight \(4, 3, 7, 7\)"):
        fitted(colour, grey)
    volumes = resnet(18, 3).state_dict()
    assert fitted(colour, volumes, inflate="i3d").transfer.changed["conv1.weight"].startswith("summed over 3 input")
    with pytest.raises(ValueError, match=r"1 keys have no place in the encoder \(fc\.bias\)"):
        fitted({**colour, "fc.bias": torch.zeros(2)}, volumes, inflate="i3d")
