"""Files of whole projects, as they are on disk: which tensors an encoder begins with, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from methods.encoders import ENCODERS, Encoder
from methods.encoders.layouts import LayoutName
from methods.encoders.transfer import Transfer
from orchestrator.config.weights import WeightsFile
from orchestrator.training.checkpoint import CheckpointError
from orchestrator.training.start import begin, transfer_from
from tests.released_networks import (
    genesis_shapes,
    radimagenet_shapes,
    swin_ssl_shapes,
    transvw_shapes,
    voco_shapes,
)
from tests.released_weights import Shapes, filled

WIDTH, WINDOW = 24, 2
GENESIS = {"name": "genesis_unet", "init_features": 4}
SWIN = {"name": "swin_unetr", "spatial_dims": 3, "feature_size": WIDTH, "window_size": WINDOW}
RESNET = {"name": "resnet", "spatial_dims": 2, "depth": 50, "init_features": 4, "in_channels": 3}
STAGES = {"features": (4, 6, 8), "stage_strides": (1, 2, 2), "blocks": (1, 2, 1), "spatial_dims": 3}
# By case: layout, encoder, the file's names and shapes, what stands before the encoder's keys, and renamed parts.
FILES: dict[str, tuple[LayoutName, dict[str, Any], Shapes, str, dict[str, str]]] = {
    "models genesis": ("models_genesis", GENESIS, genesis_shapes(4), "module.", {}),
    "models genesis of one gpu": ("models_genesis", GENESIS, genesis_shapes(4, prefix=""), "", {}),
    "transvw": ("transvw", GENESIS, transvw_shapes(4), "module.classficationNet.", {}),
    "radimagenet": (
        "radimagenet",
        RESNET,
        radimagenet_shapes(4),
        "backbone.",
        {"conv1.": "0.", "bn1.": "1.", "layer1.": "4.", "layer2.": "5.", "layer3.": "6.", "layer4.": "7."},
    ),
    "model_swinvit.pt": (
        "swin_unetr_ssl",
        SWIN,
        swin_ssl_shapes(WIDTH, WINDOW, "module."),
        "module.",
        {".mlp.linear": ".mlp.fc"},
    ),
    "a training's own file": (
        "swin_unetr_ssl",
        SWIN,
        swin_ssl_shapes(WIDTH, WINDOW, "module.swin_vit.", layers="linear"),
        "module.swin_vit.",
        {},
    ),
    "voco 10k": ("voco", {**SWIN, "v2": True}, voco_shapes(WIDTH, WINDOW), "swinViT.", {}),
    "voco by data-parallel": (
        "voco",
        {**SWIN, "v2": True},
        voco_shapes(WIDTH, WINDOW, "module.swinViT."),
        "module.swinViT.",
        {},
    ),
}


def encoder_of(fields: dict[str, Any]) -> Encoder:
    torch.manual_seed(1)
    return ENCODERS[fields["name"]](ENCODERS[fields["name"]].Config.model_validate(fields))


def saved(folder: Path, weights: dict[str, Tensor], **beside: Any) -> Path:
    """Save a checkpoint as trainings do: tensors under ``state_dict``, and plain values beside them."""
    torch.save({"epoch": 3, "best_loss": 0.5, "state_dict": weights, **beside}, folder / "weights.pt")
    return folder / "weights.pt"


def index_is_whole(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make the buffers of a Swin transformer whole numbers, as they are."""
    return {key: value.long() if key.endswith("position_index") else value for key, value in weights.items()}


@pytest.mark.parametrize("case", FILES)
def test_every_tensor_of_the_encoder_is_the_file_s(case: str, tmp_path: Path) -> None:
    layout, fields, shapes, prefix, renamed = FILES[case]
    weights, encoder = index_is_whole(filled(shapes)), encoder_of(fields)
    start = WeightsFile(weights=str(saved(tmp_path, weights)), layout=layout)
    found = begin(encoder, start)
    assert transfer_from(start, encoder_of(fields)) == found
    assert (found.initial, dict(found.changed)) == ((), {})
    taken = set()
    for name, value in encoder.state_dict().items():
        part = next((ours for ours in renamed if name.startswith(ours) or (ours[0] == "." and ours in name)), None)
        key = prefix + (name.replace(part, renamed[part], 1) if part else name)
        assert torch.equal(value, weights[key]), name
        taken.add(key)
    assert set(found.left) == set(weights) - taken


KINDS = {
    "plain_conv_unet": (PlainConvUNet, "n_conv_per_stage"),
    "residual_encoder_unet": (ResidualEncoderUNet, "n_blocks_per_stage"),
}


def whole_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, blocks = KINDS[name]
    return kind(
        input_channels=1,
        n_stages=3,
        features_per_stage=[4, 6, 8],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2],
        num_classes=2,
        n_conv_per_stage_decoder=[1, 1],
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        **{blocks: [1, 2, 1]},
    )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("place", ["checkpoint_final.pth", "fold_all/checkpoint_final.pth"])
def test_a_folder_of_nnssl_gives_a_whole_network_s_encoder_once(name: str, place: str, tmp_path: Path) -> None:
    network, encoder = whole_network(name), encoder_of({"name": name, **STAGES})
    plan = {"key_to_encoder": "encoder.stages", "architecture_plans": {"arch_class_name": "ResEncL"}}
    (tmp_path / place).parent.mkdir(exist_ok=True)
    checkpoint = {
        "network_weights": network.state_dict(),
        "nnssl_adaptation_plan": plan,
        "citations": [{"name": "x"}],
    }
    torch.save({**checkpoint, "optimizer_state": {"state": {}, "param_groups": []}}, tmp_path / place)
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(plan))
    found = begin(encoder, WeightsFile(weights=str(tmp_path), layout="nnssl"))
    own = {key.removeprefix("encoder."): value for key, value in network.state_dict().items()}
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, own[key]), key
    assert found.taken == tuple(encoder.state_dict())
    assert {key.split(".")[0] for key in found.left} == {"decoder"}
    assert not [key for key in found.left if "all_modules" in key or "decoder.encoder." in key]


def test_weights_of_one_channel_are_divided_among_the_encoder_s_as_nnu_net_repeats_them(tmp_path: Path) -> None:
    network = whole_network("residual_encoder_unet")
    encoder = encoder_of({"name": "residual_encoder_unet", **STAGES, "in_channels": 4})
    torch.save({"network_weights": network.state_dict(), "plan": {"spacing": [1.0]}}, tmp_path / "nnunet.pth")
    found = begin(encoder, WeightsFile(weights=str(tmp_path), layout="nnssl"))
    key = "stem.convs.0.conv.weight"
    assert dict(found.changed) == {key: "of 1 input channel, divided among 4"}
    theirs = network.state_dict()[f"encoder.{key}"].repeat(1, 4, 1, 1, 1) / 4
    torch.testing.assert_close(encoder.state_dict()[key], theirs)


@pytest.mark.parametrize(
    ("layout", "fields", "shapes", "said"),
    [
        (
            "models_genesis",
            SWIN,
            swin_ssl_shapes(WIDTH, WINDOW, "module."),
            r"expects keys of a 3D U-Net of Models Genesis, such as down_tr64\.ops\.0\.conv1\.weight; found "
            r"module\.patch_embed.*; it fits start\.layout=swin_unetr_ssl$",
        ),
        (
            "models_genesis",
            GENESIS,
            genesis_shapes(4, channels=2),
            r"layout models_genesis expects a first kernel of 3 dimensions on 1 input channel; found "
            r"module\.down_tr64\.ops\.0\.conv1\.weight of shape \(4, 2, 3, 3, 3\)",
        ),
        (
            "swin_unetr_ssl",
            {**SWIN, "window_size": 3},
            swin_ssl_shapes(WIDTH, WINDOW, "module."),
            r"16 of \d+ tensors have other shapes \(layers1\.0\.blocks\.0\.attn\.relative_position_bias_table \(27",
        ),
        (
            "voco",
            SWIN,
            voco_shapes(WIDTH, WINDOW),
            r"8 keys have no place in the encoder \(layers1c\.0\.layer\.conv1\.conv\.weight, .*\); take an encoder",
        ),
        (
            "voco",
            {**SWIN, "v2": True},
            {**voco_shapes(WIDTH, WINDOW, "student.swinViT."), **voco_shapes(WIDTH, WINDOW, "teacher.swinViT.")},
            r"expects one Swin transformer of Swin UNETR; found 2, under student\.swinViT\., teacher\.swinViT\.; sa",
        ),
        (
            "radimagenet",
            RESNET,
            {key: shape for key, shape in radimagenet_shapes(4).items() if not key.startswith("backbone.7.")},
            r"\d+ tensors of the encoder are not in the file \(layer4\.0\.conv1\.weight, ",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_what_came_and_what_was_expected(
    layout: LayoutName, fields: dict[str, Any], shapes: Shapes, said: str, tmp_path: Path
) -> None:
    file = saved(tmp_path, index_is_whole(filled(shapes)))
    with pytest.raises(CheckpointError, match=rf"weights weights\.pt: .*{said}"):
        begin(encoder_of(fields), WeightsFile(weights=str(file), layout=layout))


class Spoken:
    """What would run a command when a pickle that holds it is read."""

    def __reduce__(self) -> Any:
        return os.system, ("echo no",)


def test_a_file_that_is_cut_off_or_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    start = WeightsFile(weights=str(tmp_path / "weights.pt"), layout="models_genesis")
    whole = saved(tmp_path, filled(genesis_shapes(4))).read_bytes()
    (tmp_path / "weights.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"weights\.pt: cannot be read .*expected a whole safetensors file, or"):
        begin(encoder_of(GENESIS), start)
    saved(tmp_path, filled(genesis_shapes(4)), optimizer=Spoken())
    with pytest.raises(
        CheckpointError, match=r"cannot be read \(.*\); expected .* holds nothing but tensors and plain"
    ):
        begin(encoder_of(GENESIS), start)


def test_a_report_of_a_transfer_is_the_same_for_both_ways_to_ask(tmp_path: Path) -> None:
    layout, fields, shapes, _, _ = FILES["transvw"]
    file = saved(tmp_path, filled(shapes))
    found = transfer_from(WeightsFile(weights=str(file), layout=layout), encoder_of(fields))
    assert isinstance(found, Transfer)
    assert str(found).startswith("56 of 56 tensors taken; left in the file: module.classficationNet.projection_head")
