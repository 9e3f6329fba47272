"""Cohort: synthetic scans that stand in for a paper's data, so that its tables run anywhere without a download."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field

from data.phantoms import cohorts
from data.shards.index import INDEX
from methods.base import FrozenConfig
from orchestrator.config.files import read
from orchestrator.config.parts import Seed
from orchestrator.config.refusal import validated
from orchestrator.ingest.request import IngestConfig
from orchestrator.ingest.run import ingest
from orchestrator.tables.choice import Lists
from orchestrator.tables.row import Seeds


class Cohort(FrozenConfig):
    """The contents of a cohort's file.

    kind, labelled, unlabelled, seed   of the phantoms, see ``raydiology phantom``
    ingest      an ingest's fields except ``source`` and ``out``; its shards replace all shards that a table's
                experiment and rows name, but those under ``also``
    also        further ingests, each under the name of the shards that it replaces: ``shards/brats-slices``
    overrides   changes to a table's experiment: networks and budgets that fit the phantoms
    rows        further changes to single rows by name, or to several rows: ``2D-*``
    seeds       seeds of pretraining and of fine-tuning, in place of the table's
    choose, repeat_over   fields and their values, in place of the table's; ``{}`` is none
    """

    kind: cohorts.Kind
    labelled: int = Field(gt=0)
    unlabelled: int = Field(ge=0)
    seed: Seed = 0
    ingest: dict[str, Any]
    also: dict[str, dict[str, Any]] = Field(default_factory=dict)
    overrides: dict[str, Any] = Field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = Field(default_factory=dict)
    seeds: Seeds | None = Field(default=None, min_length=1)
    choose: Lists | None = None
    repeat_over: Lists | None = None

    def folder(self, home: str) -> Path:
        """Return the folder of its scans and shards, named by the settings that they depend on."""
        core = self.model_dump(mode="json", exclude={"overrides", "rows", "seeds", "choose", "repeat_over"})
        digest = hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()[:12]
        return Path(home) / "cohorts" / f"{self.kind}-{digest}"

    def place(self, home: str, shards: str) -> str:
        """Return the cohort's shards that replace the given shards of a table."""
        return str(_out(self.folder(home), shards if shards in self.also else ""))

    @property
    def lists(self) -> dict[str, Lists]:
        """Its values of fields in place of a table's, by ``choose`` and ``repeat_over``."""
        given = {"choose": self.choose, "repeat_over": self.repeat_over}
        return {kind: lists for kind, lists in given.items() if lists is not None}

    def prepare(self, home: str) -> None:
        """Write and ingest the phantoms, unless that is done already."""
        folder = self.folder(home)
        missing = [request for request in self.requests(folder) if not (Path(request.out) / INDEX).is_file()]
        if missing:
            cohorts.write(self.kind, folder / "scans", self.labelled, self.unlabelled, self.seed)
        for request in missing:
            ingest(request)

    def requests(self, folder: Path) -> list[IngestConfig]:
        """Return the request of each ingest; raise ConfigError if the file names something that does not exist."""
        asked = []
        for name, fields in {"": self.ingest, **self.also}.items():
            tree = {"source": str(folder / "scans"), "out": str(_out(folder, name)), **fields}
            where = f"also.{name}" if name else "ingest"
            asked.append(validated(IngestConfig, tree, f"cohort {self.kind}, {where}"))
        return asked


def _out(folder: Path, name: str) -> Path:
    return folder / ("shards" + re.sub(r"[^\w.-]+", "-", f"-{name}" if name else ""))


def load(path: Path) -> Cohort:
    """Read a cohort's file; raise ConfigError if it is not valid."""
    cohort = validated(Cohort, read(path), str(path))
    cohort.requests(Path())
    return cohort
