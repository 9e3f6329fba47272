"""Identity: record whose results a folder holds, so that other results never overwrite them."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data.shards.index import ShardSet
from data.shards.writer import write_atomically
from methods.base import decisive
from orchestrator.config.experiment import Experiment

IDENTITY = "identity.json"


def held(folder: Path) -> dict[str, Any] | None:
    """Return the identity that a folder records; None if it records none."""
    path = folder / IDENTITY
    return json.loads(path.read_text()) if path.exists() else None


def mark(folder: Path, identity: Mapping[str, Any]) -> None:
    """Record an identity in a folder."""
    write_atomically(folder / IDENTITY, json.dumps(identity, indent=2))


def own(folder: Path, identity: Mapping[str, Any], remedy: str) -> None:
    """Mark a folder with an identity; raise ValueError with the differences if it has another."""
    asked: dict[str, Any] = json.loads(json.dumps(identity))
    found = held(folder)
    if found is not None and found != asked:
        differing = [name for name in (*asked, *(set(found) - set(asked))) if found.get(name) != asked.get(name)]
        changes = "; ".join(f"{name}: found {found.get(name)}, asked for {asked.get(name)}" for name in differing)
        raise ValueError(f"folder {folder} holds something else ({changes}), which would be overwritten; {remedy}")
    mark(folder, asked)


def settings(experiment: Experiment, used: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that decide an experiment's results, and its shards' digests in place of addresses.

    ``used`` names the shards that count, by address; the others need not exist.
    """
    tree = decisive(experiment, {"home", "resources", "tracking"})
    shards = [one.pop("shards") for data in _data_in(tree) for one in (data if isinstance(data, list) else [data])]
    if tree["downstream"]:
        shards.append(tree["downstream"].pop("shards"))
        del tree["downstream"]["resources"]
    return tree, [ShardSet.open(uri).digest for uri in shards if uri in used]


def key(experiment: Experiment, used: Collection[str]) -> str:
    """Name an experiment by the settings that decide its results."""
    tree, digests = settings(experiment, used)
    text = json.dumps({"experiment": tree, "digests": digests}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _data_in(tree: Mapping[str, Any]) -> list[Any]:
    """Return the data of an experiment's tree, and those of its stages that have their own."""
    return [part["data"] for part in (tree, *tree.get("stages", ())) if part.get("data")]
