"""Cohort: synthetic scans that stand in for a paper's data, so that its tables run anywhere without a download."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from data.phantom import write_cohort
from data.phantom_brain import write_brains
from data.phantom_pictures import write_films, write_fundus
from data.shardset import INDEX
from methods.base import Frozen
from orchestrator import config
from orchestrator.config import ConfigError
from orchestrator.ingest import ingest
from orchestrator.ingest_plan import IngestConfig

WRITERS: dict[str, Callable[..., Any]] = {
    "abdomen": write_cohort,
    "brain": write_brains,
    "fundus": write_fundus,
    "chest": write_films,
}


class Cohort(Frozen):
    """What a cohort's file says.

    kind, labelled, unlabelled, seed   of the phantoms, see ``raydiology phantom``
    ingest      an ingest's fields but for ``source`` and ``out``
    overrides   changes of a table's experiment: networks and budgets that fit the phantoms
    rows        further changes of single rows, by their names
    """

    kind: Literal["abdomen", "brain", "fundus", "chest"]
    labelled: int = Field(gt=0)
    unlabelled: int = Field(ge=0)
    seed: int = 0
    ingest: dict[str, Any]
    overrides: dict[str, Any] = Field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def folder(self, home: str) -> Path:
        """Return where its scans and shards are, named by what they depend on."""
        core = self.model_dump(mode="json", exclude={"overrides", "rows"})
        digest = hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()[:12]
        return Path(home) / "cohorts" / f"{self.kind}-{digest}"

    def changes(self, home: str) -> dict[str, Any]:
        """Return the changes of a table's experiment, dotted: its overrides, and where its shards are."""
        shards = str(self.folder(home) / "shards")
        return {**self.overrides, "data.shards": shards, "downstream.shards": shards}

    def prepare(self, home: str) -> None:
        """Write and ingest the phantoms, unless that is done."""
        folder = self.folder(home)
        request = self.request(folder)
        if not (folder / "shards" / INDEX).is_file():
            WRITERS[self.kind](folder / "scans", self.labelled, self.unlabelled, seed=self.seed)
            ingest(request)

    def request(self, folder: Path) -> IngestConfig:
        """Return what is asked of the ingest; raise ConfigError in words where the file asks what there is not."""
        try:
            return IngestConfig(source=str(folder / "scans"), out=str(folder / "shards"), **self.ingest)
        except ValidationError as error:
            raise ConfigError(config.explain(error, f"cohort {self.kind}, ingest")) from None


def load(path: Path) -> Cohort:
    """Read a cohort's file; raise ConfigError in words."""
    try:
        cohort = Cohort.model_validate(config.read(path))
    except ValidationError as error:
        raise ConfigError(config.explain(error, str(path))) from None
    cohort.request(Path())
    return cohort
