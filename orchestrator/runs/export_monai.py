"""Export to MONAI: weights under MONAI's own keys, with a script that loads them strictly without this project."""

from dataclasses import dataclass
from string import Template
from typing import Any

from methods.encoders.resnet import ResNetEncoder, monai_arguments
from methods.encoders.resnet3d import ResNet3DEncoder, vanilla_resnet
from methods.encoders.unet import norm_layer
from methods.encoders.vit import ViTEncoder
from methods.encoders.vit import monai_arguments as vit_arguments
from orchestrator.runs.card import TrainedPart

_SCRIPT = Template('''"""Load these weights into MONAI's own class; run it beside the weights."""

from pathlib import Path

from monai.networks.nets import $kind
from safetensors.torch import load_file

network = $kind($arguments)
weights = load_file(Path(__file__).with_name("$weights"))
$load
print(f"loaded {len(weights)} tensors strictly into $kind")
''')
_STRICT = "load_state_dict(weights, strict=True)"


@dataclass(frozen=True)
class _Counterpart:
    """MONAI's class that holds an encoder: its name, the config's fields that it takes, and how to load each part.

    Without ``network``, the segmentation network on the encoder is not of this class.
    """

    kind: str
    fields: tuple[str, ...]
    encoder: str
    network: str | None = None


_COUNTERPARTS = {
    "swin_unetr": _Counterpart(
        "SwinUNETR",
        ("feature_size", "depths", "num_heads", "window_size"),
        encoder=f"network.swinViT.{_STRICT}",
        network=f"network.{_STRICT}",
    ),
    "unet": _Counterpart(
        "BasicUNet",
        ("features",),
        encoder="""for name in ("conv_0", "down_1", "down_2", "down_3", "down_4"):
    level = {key.removeprefix(name + "."): value for key, value in weights.items() if key.startswith(name + ".")}
    getattr(network, name).load_state_dict(level, strict=True)""",
        network=f"network.{_STRICT}",
    ),
    "densenet": _Counterpart(
        "DenseNet", ("growth_rate", "block_config", "init_features"), encoder=f"network.features.{_STRICT}"
    ),
    "resnet": _Counterpart("ResNet", (), encoder=f"network.{_STRICT}"),
    "vnet": _Counterpart(
        "VNet",
        (),
        encoder="""for name in ("in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"):
    stage = {key.removeprefix(name + "."): value for key, value in weights.items() if key.startswith(name + ".")}
    getattr(network, name).load_state_dict(stage, strict=True)""",
        network=f"network.{_STRICT}",
    ),
    "vit": _Counterpart("ViT", (), encoder=f"network.{_STRICT}"),
}
_UNETR = _Counterpart("UNETR", (), encoder="", network=f"network.{_STRICT}")
_UNETR_LAYERS, _VNET_FEATURES = 12, 16  # MONAI's UNETR and VNet have no others


def loading_script(trained: TrainedPart) -> str:
    """Return the script that loads an encoder or network into MONAI's class; raise ValueError if MONAI has none."""
    part, weights = trained.part, trained.weights.name
    card = {**trained.card, "encoder": _as_resnet(trained.card["encoder"])}
    encoder, counterpart, load = card["encoder"], _counterpart(card["encoder"], part), None
    if counterpart is not None and part == "encoder":
        load = counterpart.encoder
    elif counterpart is not None and card["task"]["name"] == "segmentation":
        load = counterpart.network
    if counterpart is None or load is None:
        subject = "" if part == "encoder" else f"network for {card['task']['name']} on "
        raise ValueError(
            f"{subject}encoder {encoder['name']}: MONAI has no class for it; load {part}/{weights} of the run's "
            "folder into the classes of methods/, or export it with --to safetensors"
        )
    return _SCRIPT.substitute(
        kind=counterpart.kind,
        arguments=", ".join(f"{name}={value!r}" for name, value in _arguments(card, part, counterpart).items()),
        weights=weights,
        load=load,
    )


def _counterpart(encoder: dict[str, Any], part: str) -> _Counterpart | None:
    """Return MONAI's class for an encoder, or for the network on it."""
    if encoder["name"] == "vit" and part == "network":
        return _UNETR if encoder["num_layers"] == _UNETR_LAYERS else None
    if encoder["name"] == "vnet" and encoder["init_features"] != _VNET_FEATURES:
        return None
    return _COUNTERPARTS.get(encoder["name"])


def _as_resnet(encoder: dict[str, Any]) -> dict[str, Any]:
    """Return an encoder's fields; a ``resnet3d`` that computes what a ``resnet`` does becomes one."""
    if encoder["name"] != "resnet3d":
        return encoder
    same = vanilla_resnet(ResNet3DEncoder.Config.model_validate(encoder))
    name = "resnet3d (but for ResNet3D-18, 34 and 50 with batch norm, full convolutions and vanilla strides)"
    return {"name": name} if same is None else same.model_dump()


def _arguments(card: dict[str, Any], part: str, counterpart: _Counterpart) -> dict[str, Any]:
    """Return the arguments with which MONAI's class has the shapes of the weights."""
    encoder = card["encoder"]
    if encoder["name"] == "resnet":
        return monai_arguments(ResNetEncoder.Config.model_validate(encoder))
    if encoder["name"] == "vit":
        arguments = vit_arguments(ViTEncoder.Config.model_validate(encoder))
        if part == "network":
            del arguments["num_layers"], arguments["patch_size"]
            arguments["out_channels"] = len(card["class_names"])
        return arguments
    arguments = {"spatial_dims": encoder["spatial_dims"], "in_channels": encoder["in_channels"]}
    arguments["out_channels"] = len(card["class_names"]) if part == "network" else 2
    arguments |= {name: encoder[name] for name in counterpart.fields}
    arguments |= {"use_v2": True} if encoder.get("v2") else {}
    if "norm" in encoder:
        arguments["norm"] = norm_layer(encoder["norm"])
    return arguments
