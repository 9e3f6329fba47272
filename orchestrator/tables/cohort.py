"""Cohort: synthetic scans that stand in for a paper's data, so that its tables run anywhere without a download."""

import hashlib
import json
import re
from collections.abc import Mapping
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
from orchestrator.tables.choice import Lists
from orchestrator.tables.row import Seeds

LISTS = ("choose", "repeat_over")
# The fields of a cohort that its scans and shards do not depend on.
OF_TABLES = {"overrides", "rows", "pretrain_seeds", "finetune_seeds", "concurrent", "classes", *LISTS}


class Phantoms(FrozenConfig):
    """Synthetic scans of one kind, see ``raydiology phantom``."""

    kind: cohorts.Kind
    labelled: int = Field(gt=0)
    unlabelled: int = Field(ge=0)
    seed: Seed = 0

    def write(self, folder: Path) -> None:
        """Write the scans into a folder; the same fields give the same bytes."""
        cohorts.write(self.kind, folder, self.labelled, self.unlabelled, self.seed)


class Cohort(Phantoms):
    """The contents of a cohort's file.

    kind, labelled, unlabelled, seed   of the phantoms
    ingest      an ingest's fields except ``source`` and ``out``; its shards replace all shards that a table's
                experiment and rows name, but those under ``also``
    also        further ingests, each under the name of the shards that it replaces: ``shards/brats-slices``; one
                that gives a ``kind``, or another field of the phantoms, is of phantoms of its own
    overrides   changes to a table's experiment: networks and budgets that fit the phantoms
    rows        further changes to single rows by name, or to several rows: ``2D-*``
    classes     names of classes or labels in the table's metrics, and those that the phantoms have in their place
    pretrain_seeds, finetune_seeds, choose, repeat_over   in place of the table's and of its rows'
    concurrent  in place of the table's
    """

    ingest: dict[str, Any]
    also: dict[str, dict[str, Any]] = Field(default_factory=dict)
    overrides: dict[str, Any] = Field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = Field(default_factory=dict)
    pretrain_seeds: Seeds | None = Field(default=None, min_length=1)
    finetune_seeds: Seeds | None = Field(default=None, min_length=1)
    concurrent: int | None = Field(default=None, gt=0)
    classes: dict[str, str] = Field(default_factory=dict)
    choose: Lists | None = None
    repeat_over: Lists | None = None

    def folder(self, home: str) -> Path:
        """Return the folder of its scans and shards, named by the settings that they depend on."""
        core = self.model_dump(mode="json", exclude=OF_TABLES)
        digest = hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()[:12]
        return Path(home) / "cohorts" / f"{self.kind}-{digest}"

    def place(self, home: str, shards: str) -> str:
        """Return the cohort's shards that replace the given shards of a table."""
        return str(_out(self.folder(home), shards if shards in self.also else ""))

    @property
    def lists(self) -> dict[str, Lists]:
        """Its values of fields in place of a table's, by ``choose`` and ``repeat_over``."""
        return {kind: lists for kind in LISTS if (lists := getattr(self, kind)) is not None}

    def prepare(self, home: str) -> None:
        """Write and ingest the phantoms, unless that is done already."""
        from orchestrator.ingest.run import ingest  # its readers are dear, and each process of a table imports this

        folder = self.folder(home)
        missing = [request for request in self.requests(folder) if not (Path(request.out) / INDEX).is_file()]
        sources = {request.source for request in missing}
        for scans, phantoms in self.scans(folder).items():
            if str(scans) in sources:
                phantoms.write(scans)
        for request in missing:
            ingest(request)

    def scans(self, folder: Path) -> dict[Path, Phantoms]:
        """Return the phantoms by the folders that they are written to."""
        return dict(self._phantoms(folder, name, fields)[:2] for name, fields in self._ingests.items())

    def requests(self, folder: Path) -> list[IngestConfig]:
        """Return the request of each ingest; raise ConfigError if the file names something that does not exist."""
        asked = []
        for name, given in self._ingests.items():
            scans, _, fields = self._phantoms(folder, name, given)
            tree = {"source": str(scans), "out": str(_out(folder, name)), **fields}
            asked.append(validated(IngestConfig, tree, self._where(name)))
        return asked

    @property
    def _ingests(self) -> dict[str, dict[str, Any]]:
        return {"": self.ingest, **self.also}

    def _where(self, name: str) -> str:
        return f"cohort {self.kind}, {f'also.{name}' if name else 'ingest'}"

    def _phantoms(self, folder: Path, name: str, fields: Mapping[str, Any]) -> tuple[Path, Phantoms, dict[str, Any]]:
        """Return the folder of an ingest's scans, their phantoms, and the ingest's own fields."""
        common = {field: getattr(self, field) for field in Phantoms.model_fields}
        changes = {field: value for field, value in fields.items() if field in common and name}
        phantoms = validated(Phantoms, {**common, **changes}, self._where(name))
        own = phantoms.model_dump() != common
        scans = folder / ("-".join(["scans", *map(str, phantoms.model_dump().values())]) if own else "scans")
        return scans, phantoms, {field: value for field, value in fields.items() if field not in changes}


def _out(folder: Path, name: str) -> Path:
    return folder / ("shards" + re.sub(r"[^\w.-]+", "-", f"-{name}" if name else ""))


def load(path: Path) -> Cohort:
    """Read a cohort's file; raise ConfigError if it is not valid."""
    cohort = validated(Cohort, read(path), str(path))
    cohort.requests(Path())
    return cohort
