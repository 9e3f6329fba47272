"""Export to torchvision: a residual encoder in 2D under torchvision's own keys, for its ``resnet18``, 34 and 50."""

from io import BytesIO

import torch

from methods.encoders.kernels import COLOURS, for_channels
from methods.encoders.resnet import ResNetEncoder
from orchestrator.runs.card import TrainedPart
from orchestrator.runs.encoder_weights import encoder_of

WEIGHTS = "resnet.pth"
FIRST = "conv1.weight"
WIDTH = 64  # of torchvision's networks
REMARKS = (
    "There is no classifier in the file: torchvision's begins at random. Images are prepared by the recipe that the "
    "card names, not with ImageNet's mean and deviation; a grey image is shown as red, green and blue alike.",
)

_SCRIPT = '''"""Load these weights into torchvision's own class; run it beside the weights."""

from pathlib import Path

import torch
from torchvision.models import {network}

network = {network}()
weights = torch.load(Path(__file__).with_name("{weights}"), weights_only=True)
left = network.load_state_dict(weights, strict=False)
assert (sorted(left.missing_keys), left.unexpected_keys) == (["fc.bias", "fc.weight"], [])
print(f"loaded {{len(weights)}} tensors, all but the classifier's, into {network}")
'''


def torchvision_files(trained: TrainedPart) -> dict[str, bytes]:
    """Return the state dict of torchvision's network; raise ValueError where it has none for the encoder."""
    network_of(trained)
    _, weights = encoder_of(trained)
    weights[FIRST] = for_channels(weights[FIRST], COLOURS)
    held = BytesIO()
    torch.save(weights, held)
    return {WEIGHTS: held.getvalue(), trained.description.name: trained.description.read_bytes()}


def torchvision_script(trained: TrainedPart) -> str:
    """Return the script that loads the state dict."""
    return _SCRIPT.format(network=network_of(trained), weights=WEIGHTS)


def network_of(trained: TrainedPart) -> str:
    """Return the name of torchvision's network with an encoder's keys and shapes; raise ValueError if it has none."""
    fields = trained.card["encoder"]
    if fields["name"] != "resnet" or fields["spatial_dims"] != 2:
        raise ValueError(
            f"encoder {fields['name']} in {fields['spatial_dims']}D: torchvision has residual networks in 2D alone; "
            "pretrain encoder resnet with spatial_dims: 2, or export with --to monai or --to safetensors"
        )
    config = ResNetEncoder.Config.model_validate(fields)
    if config.init_features != WIDTH:
        raise ValueError(
            f"encoder resnet with init_features {config.init_features}: torchvision's networks begin with {WIDTH} "
            "channels; pretrain with init_features: 64, or export with --to monai or --to safetensors"
        )
    if config.in_channels not in (1, COLOURS):
        raise ValueError(
            f"encoder resnet with {config.in_channels} input channels: torchvision's networks see {COLOURS}, and "
            "there is no rule for other channels than grey or colours; export with --to monai or --to safetensors"
        )
    return f"resnet{config.depth}"
