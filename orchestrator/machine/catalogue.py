"""Catalogue: everything that a user can choose, read from the registries and the configs themselves."""

import json
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from data.recipes import RECIPES
from methods import METHODS
from methods.downstream import TASKS
from methods.encoders import ENCODERS
from orchestrator.machine.parameters import networks, parameters


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Return methods, encoders, tasks, recipes, each with its description and defaults, and networks, as JSON values.

    Methods also have ``parameters``: how many parameters of the encoder and of each head are trained, in each of the
    method's variants at each of the paper's sizes. ``networks`` are classifiers of papers, with their ``parameters``
    and the ``multiply_adds`` of an image of ``size``.
    """
    return {
        "methods": [{**_of_class(name, kind), "parameters": parameters(name)} for name, kind in METHODS.items()],
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
        "networks": [_plain(network) for network in networks()],
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
