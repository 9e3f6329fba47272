"""The request for an ingest, and how it is read from a YAML file and the command line."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveInt, field_validator, model_validator

from data.recipes import RECIPES, Recipe
from data.sources import SourceOptions
from data.spelling import did_you_mean
from methods.base import FrozenConfig
from orchestrator.config.files import merge
from orchestrator.config.parts import Seed
from orchestrator.config.paths import absolute
from orchestrator.config.refusal import ConfigError, validated
from orchestrator.config.yaml_text import parsed


def _placed(uri: str) -> str:
    absolute(uri)  # raises for credentials, and for a relative path in a submitted job
    return uri


class ScanSource(FrozenConfig):
    """A folder or bucket of scans, its layout, and how studies are found in it."""

    source: str
    layout: str
    options: SourceOptions = SourceOptions()

    _source_placed = field_validator("source")(_placed)


class IngestConfig(FrozenConfig):
    """The request for an ingest.

    also            further sources into the same shards
    recipe          preprocessing by name; ``changes`` replaces some of its fields
    val_fraction    share of patients held out for validation if the layout names no such split; likewise
                    test_fraction
    max_bad         if a larger share of the studies cannot be used, no index is written
    rows_per_group  slices or pictures per row group, which is read and mixed as a whole; a volume has its own row
                    group
    readers         how many tasks run at once (default: one per core)
    """

    source: str
    layout: str
    recipe: str
    out: str
    options: SourceOptions = SourceOptions()
    also: tuple[ScanSource, ...] = ()
    changes: dict[str, Any] = Field(default_factory=dict)
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Seed = 0
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.1
    strict: bool = False
    overwrite: bool = False
    keep_names: bool = False
    rows_per_group: PositiveInt = 16
    readers: PositiveInt | None = None

    _both_placed = field_validator("source", "out")(_placed)

    @model_validator(mode="after")
    def _leaves_patients_to_train(self) -> "IngestConfig":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction:g} and test_fraction {self.test_fraction:g} leave no patients to "
                "train; expected a sum below 1: lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _recipe_exists(self) -> "IngestConfig":
        if self.recipe not in RECIPES:
            near = did_you_mean(self.recipe, RECIPES)
            raise ValueError(f"recipe: there is no {self.recipe!r}{near}; expected one of {', '.join(RECIPES)}")
        assert self.resolved_recipe, "its fields are checked as well"
        return self

    @property
    def sources(self) -> tuple[ScanSource, ...]:
        """All sources at absolute places: workers of a cluster that is joined have another working folder."""
        first = ScanSource(source=self.source, layout=self.layout, options=self.options)
        return tuple(one.model_copy(update={"source": absolute(one.source)}) for one in (first, *self.also))

    @property
    def resolved_recipe(self) -> Recipe:
        tree = {**RECIPES[self.recipe].model_dump(), **self.changes}
        return validated(Recipe, tree, f"recipe {self.recipe}, changed")


def load(asked: dict[str, Any], path: str | None = None) -> IngestConfig:
    """Read an ingest file, overlay what the command line gives, and validate; raise ConfigError for mistakes.

    ``$NAME`` in the file stands for an environment variable, so that a file does not name one machine's folders.
    """
    tree: Any = {}
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"ingest file {path}: no such file")
        try:
            tree = parsed(_expanded(Path(path).read_text(), path))
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
