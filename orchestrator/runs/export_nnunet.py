"""Export to nnU-Net: one file with an encoder's weights and the plan by which nnU-Net builds its network around them.

Reference: MIC-DKFZ/nnUNet @ 0e495086, ``experiment_planning/like_nnssl.py`` (reads the plan) and
           ``PretrainedTrainer.load_pretrained_weights`` (takes encoder and stem, each strictly, and repeats the first
           kernel over more channels). It opens the file with ``weights_only=True`` and plans in 3D alone.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import torch

from methods.encoders.conv_unets import (
    ConvUNetConfig,
    PlainConvUNetEncoder,
    ResidualEncoderUNetEncoder,
    doubled_keys,
    package_arguments,
)
from orchestrator.config.parts import TRAINABLE
from orchestrator.runs.card import TrainedPart
from orchestrator.runs.encoder_weights import INSIDE, encoder_of

WEIGHTS, PLAN = "nnunet.pth", "adaptation_plan.json"
CONFIGURATION = "raydiology"
ROOM = "dynamic_network_architectures.architectures.unet"
# By encoder: the package's network, its two arguments on blocks, where its stem is, and its first convolution.
_NETWORKS = {
    "plain_conv_unet": ("PlainConvUNet", "n_conv_per_stage", 2, "encoder.stages.0", "encoder.stages.0.0.convs.0"),
    "residual_encoder_unet": ("ResidualEncoderUNet", "n_blocks_per_stage", 1, "encoder.stem", "encoder.stem.convs.0"),
}
# Where methods say how large the images are that they show an encoder, the first that a method has.
_SIZES = ("crop_size", "crops.size", "large_crops.size", "size")
USUAL_PATCH = 128

_SCRIPT = '''"""Build the plan's network and load the encoder strictly, as nnU-Net does; run it beside the weights."""

from pathlib import Path
from pydoc import locate

import torch

file = torch.load(Path(__file__).with_name("{weights}"), weights_only=True)
plan = file["nnssl_adaptation_plan"]
architecture = plan["architecture_plans"]
arguments = dict(architecture["arch_kwargs"])
for name in architecture["arch_kwargs_requiring_import"]:
    arguments[name] = arguments[name] and locate(arguments[name])
kind = locate(architecture["arch_class_name"])
network = kind(input_channels=plan["pretrain_num_input_channels"], num_classes=2, **arguments)
weights = {{key.removeprefix("encoder."): value for key, value in file["network_weights"].items()}}
network.encoder.load_state_dict(weights, strict=True)
print(f"loaded {{len(weights)}} tensors strictly into the encoder of {{kind.__name__}}")
'''
REMARKS = (
    "nnU-Net fine-tunes it, once a dataset in its own format has a fingerprint and a plan:",
    "",
    "```bash",
    "nnUNetv2_extract_fingerprint -d DATASET",
    "nnUNetv2_plan_experiment -d DATASET",
    f"nnUNetv2_preprocess_like_nnssl -d DATASET -n NAME -pc {WEIGHTS} -am like_pretrained",
    "nnUNetv2_train_pretrained DATASET 3d_fullres FOLD -p ptPlans__NAME____... -tr PretrainedTrainer",
    "```",
    "",
    "These commands are in nnU-Net's repository since July 2026, after version 2.8.1. nnU-Net scales each image to "
    "mean 0 and deviation 1, whatever the recipe did. It repeats a residual encoder's first kernel of 1 channel over "
    "more channels; a plain one needs images with as many channels as it was trained on.",
)


def nnunet_files(trained: TrainedPart) -> dict[str, bytes]:
    """Return the file for nnU-Net, and its plan as JSON; raise ValueError for an encoder that nnU-Net lacks."""
    config = _config_of(trained)
    encoder, weights = encoder_of(trained)
    plan = adaptation_plan(trained.card, config, encoder.strides)
    network = {f"{INSIDE}{key}": value for key, value in doubled_keys(weights).items()}
    cited = list(_citations(trained.card))
    held = BytesIO()
    torch.save({"network_weights": network, "nnssl_adaptation_plan": plan, "citations": cited}, held)
    return {
        WEIGHTS: held.getvalue(),
        PLAN: json.dumps(plan, indent=2).encode(),
        trained.description.name: trained.description.read_bytes(),
    }


def nnunet_script(trained: TrainedPart) -> str:
    """Return the script that builds the network of the plan and loads the encoder."""
    _config_of(trained)
    return _SCRIPT.format(weights=WEIGHTS)


def adaptation_plan(card: Mapping[str, Any], config: ConvUNetConfig, strides: tuple[int, ...]) -> dict[str, Any]:
    """Return the plan, of plain types, in nnU-Net's words."""
    name = card["encoder"]["name"]
    network, blocks, of_decoder, stem, first = _NETWORKS[name]
    arguments = package_arguments(config)
    arguments |= {blocks: list(config.blocks), "n_conv_per_stage_decoder": [of_decoder] * (len(config.features) - 1)}
    patch = _patch_size(card, strides)
    return {
        "architecture_plans": {
            "arch_class_name": f"{ROOM}.{network}",
            "arch_kwargs": arguments,
            "arch_kwargs_requiring_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "pretrain_plan": {"configurations": {CONFIGURATION: {"spacing": _spacing_mm(card), "patch_size": patch}}},
        "pretrain_num_input_channels": config.in_channels,
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": stem,
        "keys_to_in_proj": [f"{first}.conv", f"{first}.all_modules.0"],
        "key_to_lpe": None,
    }


def _config_of(trained: TrainedPart) -> ConvUNetConfig:
    fields = trained.card["encoder"]
    if fields["name"] not in _NETWORKS:
        raise ValueError(
            f"encoder {fields['name']}: nnU-Net has no such network; pretrain encoder {' or '.join(_NETWORKS)}, or "
            "export with --to safetensors"
        )
    if fields["spatial_dims"] != 3:
        raise ValueError(
            f"encoder {fields['name']} in {fields['spatial_dims']}D: nnU-Net fine-tunes such weights in 3D alone; "
            "pretrain with spatial_dims: 3 on volumes, or export with --to safetensors"
        )
    kind = PlainConvUNetEncoder if fields["name"] == "plain_conv_unet" else ResidualEncoderUNetEncoder
    return kind.Config.model_validate(fields)


def _spacing_mm(card: Mapping[str, Any]) -> list[float] | None:
    """Return the spacing (D, H, W) of what the encoder was trained on; None where there is no single one."""
    recipe = card.get("recipe") or {}
    found = [one.get("spacing_mm") for one in (recipe if isinstance(recipe, list) else [recipe])]
    if found[0] is None or any(one != found[0] for one in found) or None in found[0]:
        return None
    return [float(length) for length in found[0]]


def _patch_size(card: Mapping[str, Any], strides: tuple[int, ...]) -> list[int]:
    """Return the size of what the encoder was shown, rounded up until the last map has 2 voxels along each axis."""
    stages = card.get("stages") or []
    methods = [stage["method"] for stage in reversed(stages)] + [card.get("task") or {}]
    sizes = (_at(method, path) for method in methods for path in _SIZES)
    size: Any = next((one for one in sizes if one), USUAL_PATCH)
    per_axis = list(size) if isinstance(size, list | tuple) else [size] * len(strides)
    if len(per_axis) != len(strides):
        per_axis = [USUAL_PATCH] * len(strides)
    return [max(2, -(-side // stride)) * stride for side, stride in zip(per_axis, strides, strict=True)]


def _at(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _citations(card: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the paper of each method, as nnU-Net prints them while it trains."""
    for name in dict.fromkeys(stage["method"]["name"] for stage in card.get("stages") or []):
        words = sys.modules[TRAINABLE[name].__module__].__doc__ or ""
        _, _, after = words.partition("Paper:")
        paper = after.partition("Reference:")[0].partition("Variants:")[0]
        yield {"type": "Pretraining method", "name": name, "apa_citations": [" ".join(paper.split())]}
