"""Parameters: how many a method trains in each variant at its paper's sizes, and what papers' networks compute.

The networks have to be built to be counted, which imports MONAI and takes seconds. So the counts are recorded in
``parameters.json``, by the settings that were counted, and what the record lacks is built. After a change of a
method, an encoder or a paper's size, write the record anew:

    python -m orchestrator.machine.parameters > orchestrator/machine/parameters.json
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from methods import METHODS
from methods.base import Facts, FrozenConfig, Method, decisive
from methods.downstream import Task
from methods.encoders import ENCODERS, Encoder
from methods.papers import PAPER_NETWORKS, PAPER_SIZES, PaperNetwork, PaperSize
from methods.parts.flat_map import mean_features

# Where the record holds papers' networks, beside methods by their names.
NETWORKS = "networks"
RECORD = Path(__file__).with_suffix(".json")
Counts = dict[str, int]


def parameters(name: str) -> list[dict[str, Any]]:
    """Count a method's parameters, of the encoder and of each head; empty if no paper trained it."""
    return [
        _entry(size, config, _recorded(name).get(_key(size, config)) or build(name, size, config))
        for size, config in _trained(name)
    ]


def build(name: str, size: PaperSize, config: FrozenConfig) -> Counts:
    """Count the parameters of each part of a method, by building it."""
    encoder = deepcopy(_encoder(size.encoder.model_dump_json()))  # a method may freeze a part of it
    # Heads of a hundred million parameters need no memory here. MONAI's Swin cannot be built like this.
    names = dict.fromkeys(range(size.num_classes), "")
    with torch.device("meta"):
        method = METHODS[name](config, encoder, Facts(num_samples=1, steps=1, batch_size=1, names=names))
    parts = method.network if isinstance(method, Task) else method
    counts = {part: _count(module) for part, module in parts.named_children()}
    return {part: count for part, count in counts.items() if count}


def networks() -> list[dict[str, Any]]:
    """Count the parameters and multiply-adds of the papers' networks, with their classifiers."""
    return [
        {
            "name": network.name,
            "in_channels": network.encoder.model_dump()["in_channels"],
            "size": network.size,
            **(_recorded(NETWORKS).get(_network_key(network)) or build_network(network)),
        }
        for network in PAPER_NETWORKS
    ]


def build_network(network: PaperNetwork) -> Counts:
    """Count the parameters of a paper's network, and the multiply-adds of its convolutions and linear layers."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        encoder = _encoder_of(network.encoder.model_dump_json())
        head = nn.Linear(encoder.channels[-1], network.num_classes)
        head(mean_features(encoder, torch.zeros(1, encoder.in_channels, *network.size)))
    return {"parameters": _count(encoder) + _count(head), "multiply_adds": counter.get_total_flops() // 2}


def _network_key(network: PaperNetwork) -> str:
    return _digest([decisive(network.encoder), network.size, network.num_classes])


def built() -> dict[str, dict[str, Counts]]:
    """Build every method at all its sizes; return what the record should hold."""
    methods = {
        name: {_key(size, config): build(name, size, config) for size, config in _trained(name)}
        for name in PAPER_SIZES
    }
    return {**methods, NETWORKS: {_network_key(network): build_network(network) for network in PAPER_NETWORKS}}


def _trained(name: str) -> Iterator[tuple[PaperSize, FrozenConfig]]:
    """Yield what a paper trained: each of its sizes in each variant."""
    kind: type[Method] = METHODS[name]
    variant = kind.Config.model_fields.get("variant")
    for size in PAPER_SIZES.get(name, ()):
        for fields in [{"variant": name} for name in get_args(variant.annotation)] if variant else [{}]:
            yield size, kind.Config.model_validate({**size.fields, **fields})


def _entry(size: PaperSize, config: FrozenConfig, counts: Counts) -> dict[str, Any]:
    encoder = size.encoder.model_dump()
    return {
        "variant": config.model_dump().get("variant", ""),
        "images": size.images,
        "spatial_dims": encoder["spatial_dims"],
        "in_channels": encoder["in_channels"],
        "network": encoder.get("network", encoder["name"]),
        "encoder": counts["encoder"],
        "heads": {part: count for part, count in counts.items() if part != "encoder"},
    }


def _key(size: PaperSize, config: FrozenConfig) -> str:
    """Name what is counted by the settings that decide it, so that a count is never shown for other settings."""
    return _digest([decisive(size.encoder), decisive(config)])


def _digest(settings: list[Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


@cache
def _record() -> dict[str, dict[str, Counts]]:
    return json.loads(RECORD.read_text())


def _recorded(name: str) -> dict[str, Counts]:
    return _record().get(name, {})


@cache
def _encoder(config: str) -> Encoder:
    return _encoder_of(config)


def _encoder_of(config: str) -> Encoder:
    kind = ENCODERS[json.loads(config)["name"]]
    return kind(kind.Config.model_validate_json(config))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(built(), indent=2) + "\n")
