"""Clusterfile: check a file for Ray's cluster launcher without a cloud.

Ray has no public way to check such a file offline; this is the only place that uses its private one.
"""

from pathlib import Path
from typing import Any

import yaml
from jsonschema.exceptions import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.config.yaml_text import parsed

# Where the launcher puts its file on a cluster's head.
ON_HEAD = Path("~/ray_bootstrap_config.yaml")


class ClusterFileError(ValueError):
    """A cluster file that Ray's launcher would refuse; the message names the field."""


def check(path: Path) -> dict[str, Any]:
    """Return a cluster file with Ray's defaults; raise ClusterFileError if the launcher would refuse it."""
    try:
        tree = parsed(path.read_text())
    except yaml.YAMLError as error:
        raise ClusterFileError(f"{path.name}: not YAML: {error}") from None
    try:
        full = prepare_config(tree)
        validate_config(full)
    except ValidationError as error:
        where = ".".join(map(str, error.absolute_path)) or "top level"
        raise ClusterFileError(f"{path.name}: {where}: {error.message.splitlines()[0]}") from None
    except ValueError as error:
        raise ClusterFileError(f"{path.name}: {error}") from None
    return full


def capacity(tree: dict[str, Any]) -> dict[str, float]:
    """Return a cluster's resources once its launcher has started all nodes that it may, the head included.

    Returns an empty dictionary for machines of one's own: their file names no types, so nothing is known of them.
    """
    total: dict[str, float] = {}
    most = tree.get("max_workers", 0)
    for name, kind in tree.get("available_node_types", {}).items():
        count = 1 if name == tree.get("head_node_type") else min(most, kind.get("max_workers", most))
        for resource, amount in kind["resources"].items():
            total[resource] = total.get(resource, 0.0) + count * amount
    return total


def capacity_here() -> dict[str, float]:
    """Return the resources that the cluster can grow to if this is the head of a launched cluster; else nothing."""
    path = ON_HEAD.expanduser()
    return capacity(parsed(path.read_text())) if path.is_file() else {}
