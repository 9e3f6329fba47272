"""The request of an ingest, read from a YAML file and the command line."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config import ConfigError, merge
from orchestrator.ingest_plan import IngestConfig
from orchestrator.refusal import validated


def load(asked: dict[str, Any], path: str | None = None) -> IngestConfig:
    """Read an ingest file, overlay what the command line gives, and validate; raise ConfigError for mistakes.

    ``$NAME`` in the file stands for an environment variable, so that a file does not name one machine's folders.
    """
    tree: Any = {}
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"ingest file {path}: no such file")
        try:
            tree = yaml.safe_load(_expanded(Path(path).read_text(), path))
        except yaml.YAMLError as error:
            raise ConfigError(f"ingest file {path}: not YAML: {error}") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"ingest file {path}: expected a mapping of fields, found {type(tree).__name__}")
    return validated(IngestConfig, merge(tree, asked), path or "the options given")


def _expanded(text: str, path: str) -> str:
    """Replace environment variables, in all lines but comments; raise ConfigError if one is not set."""
    lines = ["" if line.lstrip().startswith("#") else os.path.expandvars(line) for line in text.splitlines()]
    if missing := re.search(r"\$\{?(\w+)", "\n".join(lines)):
        raise ConfigError(f"ingest file {path}: environment variable {missing[1]} is not set; export it first")
    return "\n".join(lines)
