"""Catalogue: everything that a user can choose, read from the registries and the configs themselves."""

import json
from functools import cache
from typing import Any, get_args

import torch
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from torch import nn

from data.recipes import RECIPES
from methods import METHODS
from methods.base import Method
from methods.downstream import TASKS
from methods.encoders import ENCODERS, Encoder
from methods.papers import PAPER_SIZES


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Return methods, encoders, tasks and recipes, each with its description and defaults, as JSON values.

    Methods also have ``parameters``: how many parameters of the encoder and of each head are trained, in each of the
    method's variants at each of the paper's sizes.
    """
    return {
        "methods": [
            {**_of_class(name, kind), "parameters": _parameters(name, kind)} for name, kind in METHODS.items()
        ],
        "encoders": [_of_class(name, kind) for name, kind in ENCODERS.items()],
        "tasks": [_of_class(name, kind) for name, kind in TASKS.items()],
        "recipes": [
            {
                "name": name,
                "about": f"{recipe.modality or 'any modality'} to {recipe.spatial_dims}D samples",
                "fields": _plain(recipe.model_dump(exclude={"name"}, exclude_none=True)),
            }
            for name, recipe in RECIPES.items()
        ],
    }


def _of_class(name: str, kind: Any) -> dict[str, Any]:
    about = (kind.__doc__ or "").strip().splitlines()[0]
    return {"name": name, "about": about, "fields": _fields(kind.Config)}


def _fields(config: type[BaseModel]) -> dict[str, Any]:
    fields = {name: "required" if field.is_required() else field.get_default(call_default_factory=True)
              for name, field in config.model_fields.items() if name != "name"}  # fmt: skip
    return _plain(fields)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(to_jsonable_python(values)))


def _parameters(name: str, kind: type[Method]) -> list[dict[str, Any]]:
    """Count the parameters of each variant of a method at its paper's sizes; empty if no paper trained it."""
    variant = kind.Config.model_fields.get("variant")
    entries = []
    for size in PAPER_SIZES.get(name, ()):
        for chosen in get_args(variant.annotation) if variant else ():
            encoder = _encoder(size.encoder.model_dump_json())
            # Heads of a hundred million parameters need no memory here. MONAI's Swin cannot be built like this.
            with torch.device("meta"):
                method = kind(kind.Config.model_validate({**size.fields, "variant": chosen}), encoder)
            counts = {part: _count(module) for part, module in method.named_children()}
            entries.append(
                {
                    "variant": chosen,
                    "images": size.images,
                    "spatial_dims": encoder.spatial_dims,
                    "in_channels": encoder.in_channels,
                    "network": size.encoder.model_dump()["name"],
                    "encoder": counts.pop("encoder"),
                    "heads": {part: count for part, count in counts.items() if count},
                }
            )
    return entries


@cache
def _encoder(config: str) -> Encoder:
    kind = ENCODERS[json.loads(config)["name"]]
    return kind(kind.Config.model_validate_json(config))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
