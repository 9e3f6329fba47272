"""Files of experiments: YAML in, with one ``base:`` to inherit from and ``a.b=c`` overrides; an experiment out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.experiment import Experiment
from orchestrator.config.refusal import ConfigError, validated
from orchestrator.config.yaml_text import parsed


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, its bases and ``a.b=c`` overrides; raise ConfigError for a mistake."""
    return resolve(read(path), overrides, str(path))


def resolve(tree: dict[str, Any], overrides: Sequence[str] = (), source: str = "experiment") -> Experiment:
    """Validate a config tree after applying overrides."""
    for override in overrides:
        tree = merge(tree, _parse_override(override))
    return validated(Experiment, tree, source)


def read(path: str | Path) -> dict[str, Any]:
    """Read a YAML file and what it inherits from through ``base:`` (relative to the file), unvalidated."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"experiment {path}: no such file; experiments/ holds those that come with Raydiology")
    try:
        tree = parsed(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"experiment {path}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"experiment {path}: expected a mapping of fields, found {type(tree).__name__}")
    base = tree.pop("base", None)
    return merge(read(path.parent / base), tree) if base else tree


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Overlay ``changes``: mappings merge, everything else is replaced.

    A mapping whose ``name`` differs from that of the mapping below it (another method, another encoder) replaces it
    whole, because the fields of one mean nothing to the other. A mapping whose keys are members of the list below it,
    by their ``name`` or place (another budget for stage ``mask``, another weight for shard set ``0``), changes these;
    ``null`` removes a member that is a mapping, such as a stage.
    """
    return {**tree, **{key: _merged(tree.get(key), value) for key, value in changes.items()}}


def _merged(old: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if isinstance(old, dict) and value.get("name", old.get("name")) == old.get("name"):
        return merge(old, value)
    if isinstance(old, list) and value and value.keys() <= (places := places_of(old)).keys():
        changes = {places[name]: change for name, change in value.items()}
        return [
            _merged(one, changes[place]) if place in changes else one
            for place, one in enumerate(old)
            if not isinstance(one, dict) or changes.get(place, one) is not None
        ]
    return value


def places_of(members: list[Any]) -> dict[str, int]:
    """Return the places of a list's members, by their number from 0 and by their ``name``."""
    named = {one["name"]: place for place, one in enumerate(members) if isinstance(one, dict) and "name" in one}
    return {**{str(place): place for place in range(len(members))}, **named}


def expand(dotted: dict[str, Any]) -> dict[str, Any]:
    """Turn {"a.b": c} into {"a": {"b": c}}."""
    tree: dict[str, Any] = {}
    for path, value in dotted.items():
        for part in reversed(path.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def _parse_override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {text!r}: expected field.subfield=value, such as method.crops.iou='[0.3,0.6]'")
    try:
        return expand({path: parsed(value)})
    except yaml.YAMLError:
        raise ConfigError(f"override {text!r}: {value!r} is not YAML; quote lists, such as '[0.3,0.6]'") from None


def schema() -> dict[str, Any]:
    """Return the JSON Schema of an experiment file, for editors."""
    tree = Experiment.model_json_schema()
    tree["properties"]["base"] = {"type": "string", "description": "experiment file to inherit from"}
    tree["required"] = []  # a file may leave any field to its base or to an override
    return tree
