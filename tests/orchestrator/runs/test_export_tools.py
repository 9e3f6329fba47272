"""Exports for other tools: what is in the files, and that the lines in each card load them."""

import json
import re
import sys
from pathlib import Path
from pydoc import locate
from types import ModuleType
from typing import Any

import pytest
import torch
from monai.networks.nets.resnet import ResNet
from safetensors.torch import save_file
from torch import nn

from methods.downstream.networks import segmentation_network
from methods.encoders import ENCODERS, Encoder
from orchestrator.config.files import resolve
from orchestrator.runs.course import Course
from orchestrator.runs.export import DOORS, Tool, export
from orchestrator.runs.labelled import downstream_of, labelled_samples
from orchestrator.runs.network import NETWORK, NETWORK_CARD
from orchestrator.runs.pretrain import encoder_card
from orchestrator.training.checkpoint import export_encoder
from tests.experiments import tiny_experiment, tiny_segmentation
from tests.shardsets import write_slices

SMALL = {"features": (4, 6, 8), "stage_strides": (1, (1, 2, 2), 2), "blocks": (1, 2, 1), "spatial_dims": 3}
ENCODER_OF: dict[Tool, dict[str, Any]] = {
    "monai": {"name": "unet", "spatial_dims": 3, "features": (4, 4, 8, 8, 16, 4)},
    "nnunet": {"name": "residual_encoder_unet", **SMALL},
    "torchvision": {"name": "resnet", "spatial_dims": 2, "depth": 18},
    "safetensors": {"name": "pooled_unet", "spatial_dims": 2, "features": (2, 2, 2, 2, 2)},
}
RECIPE = {"name": "ct", "spacing_mm": [2.0, 1.0, 1.0]}
STAGE = {
    "name": "pretrain",
    "budget": {"steps": 40},
    "method": {"name": "voco", "variant": "cvpr", "crop_size": [10, 32, 32]},
}


@pytest.fixture(autouse=True)
def torchvision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stand in for torchvision, which cannot be imported beside a torch for CPUs: MONAI's network has its keys."""
    models = ModuleType("torchvision.models")
    vars(models)["resnet18"] = lambda: ResNet(
        block="basic",
        layers=[2, 2, 2, 2],
        block_inplanes=[64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,
        num_classes=1000,
        bias_downsample=False,
    )
    package = ModuleType("torchvision")
    vars(package)["models"] = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return models


SAID = re.compile(r"```python\n(.*?)```", re.DOTALL)


def write_run(folder: Path, fields: dict[str, Any], **card: Any) -> Encoder:
    """Write what a finished pretraining leaves of its encoder."""
    torch.manual_seed(0)
    encoder = ENCODERS[fields["name"]](ENCODERS[fields["name"]].Config.model_validate(fields))
    told = {"stages": [STAGE], "seed": 3, "digest": "0123456789abcdef" * 4, "recipe": RECIPE}
    told |= {"trained_on": {"samples": 1200, "patients": 60}, **card}
    (folder / "encoder").mkdir(parents=True)
    export_encoder(folder / "encoder", encoder, {"encoder": encoder.config.model_dump(mode="json"), **told})
    return encoder


@pytest.mark.parametrize("to", DOORS)
def test_the_lines_in_the_card_load_the_weights_beside_it(
    to: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = write_run(tmp_path / "run", ENCODER_OF[to])
    files = export(tmp_path / "run", tmp_path / "out", to)
    (lines,) = SAID.findall((tmp_path / "out" / "README.md").read_text())
    assert lines.strip() in files[-1].read_text().replace("Path(__file__).with_name(", "Path(")
    monkeypatch.chdir(tmp_path / "out")
    exec(compile(lines, "README.md", "exec"), {})
    (count,) = re.findall(r"loaded (\d+) tensors", capsys.readouterr().out)
    twice = 2 if to == "nnunet" else 1  # its package has two names for each tensor
    assert int(count) == twice * len(encoder.state_dict())


def test_a_card_says_method_data_counts_licence_and_how_it_was_made(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ENCODER_OF["safetensors"])
    export(tmp_path / "run", tmp_path / "out", "safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "- method: voco",
        "- variant: cvpr",
        "- seed: 3",
        "- recipe: ct",
        "- stage pretrain: steps 40",
        "digest `0123456789abcdef`",
        "- trained on 1,200 samples of 60 patients",
        "## Licence",
        "A pretraining has no score of its own",
    ):
        assert said in card


@pytest.mark.parametrize("name", ["plain_conv_unet", "residual_encoder_unet"])
def test_nnu_net_s_network_is_built_from_the_plan_in_the_file_and_takes_encoder_and_stem_strictly(
    name: str, tmp_path: Path
) -> None:
    encoder = write_run(tmp_path / "run", {"name": name, **SMALL, "in_channels": 2})
    found, plan_file, *_ = export(tmp_path / "run", tmp_path / "out", "nnunet")
    held = torch.load(found, weights_only=True)
    plan = held["nnssl_adaptation_plan"]
    assert json.loads(plan_file.read_text()) == plan
    assert plan["pretrain_plan"] == {
        "configurations": {"raydiology": {"spacing": [2.0, 1.0, 1.0], "patch_size": [10, 32, 32]}}
    }
    assert (plan["recommended_downstream_patchsize"], plan["pretrain_num_input_channels"]) == ([10, 32, 32], 2)
    assert "VoCo" in held["citations"][0]["apa_citations"][0]
    network = built(plan["architecture_plans"], channels=2)
    random = {key: value.clone() for key, value in network.state_dict().items()}
    for where in (plan["key_to_encoder"], plan["key_to_stem"]):  # as PretrainedTrainer does, one after the other
        own = {key: value for key, value in held["network_weights"].items() if key.startswith(where)}
        network.get_submodule(where).load_state_dict({key[len(where) + 1 :]: value for key, value in own.items()})
        assert getattr(network, "key_to_encoder" if where == "encoder.stages" else "key_to_stem") == where
    assert set(plan["keys_to_in_proj"]) == set(network.keys_to_in_proj)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, random[key])}
    assert {key.split(".")[0] for key in changed} == {"encoder", "decoder"}  # the decoder holds the encoder once more
    assert not [key for key in changed if key.startswith("decoder") and not key.startswith("decoder.encoder.")]
    images = torch.randn(1, 2, 4, 16, 16)
    for ours, theirs in zip(encoder.eval().features(images), network.eval().encoder(images), strict=True):
        assert torch.equal(ours, theirs)


def built(plans: dict[str, Any], channels: int) -> nn.Module:
    arguments = dict(plans["arch_kwargs"])
    for name in plans["arch_kwargs_requiring_import"]:
        arguments[name] = arguments[name] and locate(arguments[name])
    kind: Any = locate(plans["arch_class_name"])
    return kind(input_channels=channels, num_classes=3, **arguments)


def test_the_encoder_in_a_fine_tuned_network_is_exported_to_nnu_net(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind = ENCODERS["plain_conv_unet"]
    encoder = kind(kind.Config.model_validate({"name": "plain_conv_unet", **SMALL}))
    (tmp_path / "run" / "network").mkdir(parents=True)
    save_file(segmentation_network(encoder, 3).state_dict(), tmp_path / "run" / "network" / NETWORK)
    card = {"encoder": encoder.config.model_dump(mode="json"), "task": {"name": "segmentation", "crop_size": 24}}
    (tmp_path / "run" / "network" / NETWORK_CARD).write_text(json.dumps({**card, "class_names": ["a", "b", "c"]}))
    found, *_ = export(tmp_path / "run", tmp_path / "out", "nnunet")
    held = torch.load(found, weights_only=True)
    assert held["nnssl_adaptation_plan"]["recommended_downstream_patchsize"] == [24, 24, 24]
    for key, value in encoder.state_dict().items():
        assert torch.equal(held["network_weights"][f"encoder.{key}"], value)


@pytest.mark.parametrize(
    ("recipe", "size", "spacing", "patch"),
    [
        ({"spacing_mm": None}, {}, None, [128, 128, 128]),
        ({"spacing_mm": [3, None, None]}, {"crops": {"size": 30}}, None, [30, 32, 32]),
        ([{"spacing_mm": [3, 1, 1]}, {"spacing_mm": [3, 2, 2]}], {"crop_size": [2, 6, 6]}, None, [4, 8, 8]),
        ([{"spacing_mm": [3, 1, 1]}] * 2, {"size": 96}, [3.0, 1.0, 1.0], [96, 96, 96]),
    ],
)
def test_spacing_and_patch_are_what_all_sets_share_and_what_the_strides_divide(
    recipe: Any, size: dict[str, Any], spacing: list[float] | None, patch: list[int], tmp_path: Path
) -> None:
    stage = {**STAGE, "method": {"name": "simsiam", **size}}
    write_run(tmp_path / "run", ENCODER_OF["nnunet"], recipe=recipe, stages=[stage])
    plan = json.loads(export(tmp_path / "run", tmp_path / "out", "nnunet")[1].read_text())
    assert plan["pretrain_plan"]["configurations"]["raydiology"] == {"spacing": spacing, "patch_size": patch}


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "channels"), [({"grey_to_rgb": True}, 3), ({}, 1), ({"in_channels": 3}, 3)])
def test_torchvision_s_network_gives_a_grey_image_the_encoder_s_last_map(
    fields: dict[str, Any], channels: int, tmp_path: Path, torchvision: ModuleType
) -> None:
    encoder = write_run(tmp_path / "run", {**ENCODER_OF["torchvision"], **fields}).eval()
    weights = torch.load(export(tmp_path / "run", tmp_path / "out", "torchvision")[0], weights_only=True)
    network: Any = vars(torchvision)["resnet18"]().eval()
    left = network.load_state_dict(weights, strict=False)
    assert (sorted(left.missing_keys), left.unexpected_keys) == (["fc.bias", "fc.weight"], [])
    network.fc = nn.Identity()
    grey = torch.rand(1, 1, 64, 64)
    ours = encoder.features(grey.expand(-1, encoder.in_channels, -1, -1))[-1].flatten(2).mean(2)
    torch.testing.assert_close(network(grey.expand(-1, 3, -1, -1)), ours, rtol=1e-4, atol=1e-5)
    assert weights["conv1.weight"].shape[1] == 3
    if channels == 3:
        assert torch.equal(weights["conv1.weight"], encoder.state_dict()["conv1.weight"])


@pytest.mark.parametrize(
    ("to", "fields", "said"),
    [
        (
            "nnunet",
            ENCODER_OF["torchvision"],
            r"encoder resnet: nnU-Net has no such network; pretrain encoder plain_",
        ),
        (
            "nnunet",
            {
                "name": "plain_conv_unet",
                "spatial_dims": 2,
                "features": (4, 4),
                "stage_strides": (1, 2),
                "blocks": (1, 1),
            },
            r"encoder plain_conv_unet in 2D: nnU-Net fine-tunes such weights in 3D alone; pretrain with spatial_dims",
        ),
        ("torchvision", ENCODER_OF["monai"], r"encoder unet in 3D: torchvision has residual networks in 2D alone"),
        (
            "torchvision",
            {**ENCODER_OF["torchvision"], "init_features": 8},
            r"init_features 8: torchvision's networks begin with 64 channels; pretrain with init_features: 64",
        ),
        (
            "torchvision",
            {**ENCODER_OF["torchvision"], "in_channels": 4},
            r"4 input channels: torchvision's networks see 3, and there is no rule for other channels than grey or",
        ),
        (
            "monai",
            {"name": "plain_conv_unet", **SMALL},
            r"encoder plain_conv_unet: MONAI has no class for it; load enc",
        ),
    ],
)
def test_what_a_tool_cannot_hold_is_refused_with_the_remedy(
    to: Tool, fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", fields)
    with pytest.raises(ValueError, match=said):
        export(tmp_path / "run", tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_the_export_for_another_tool_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ENCODER_OF["nnunet"])
    export(tmp_path / "run", tmp_path / "out", "nnunet")
    with pytest.raises(ValueError, match=r"\(to: found nnunet, asked for safetensors\).*give another --out"):
        export(tmp_path / "run", tmp_path / "out", "safetensors")


def test_the_cards_of_a_run_count_what_it_is_trained_on(tmp_path: Path) -> None:
    shards = write_slices(tmp_path / "shards", num_patients=8, size=40)
    task = tiny_segmentation(shards)
    experiment = resolve(tiny_experiment("cards", shards, tmp_path / "runs", 1, downstream=task))
    assert encoder_card(Course.open(experiment))["trained_on"] == {"samples": 36, "patients": 6}
    assert labelled_samples(downstream_of(experiment)).counts == {"samples": 36, "patients": 6}
