"""Gather: read runs' settings, states and metrics from the folders that they wrote.

A run's folder is the first-hand source. MLflow gets a copy of it later, or not at all while its server is down, and
never gets the reasons of failures. Runs whose folders are elsewhere are read from the server, see
``gather_server.py``.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from orchestrator.direction import BEST, SYSTEM, TEST
from orchestrator.history import HISTORY, Once, Tail, metrics_of
from orchestrator.judging.case_scores import CaseScores, case_scores
from orchestrator.judging.cases import CASES
from orchestrator.runs.run import RESULT
from orchestrator.tracking.hindrance import FAULTS
from orchestrator.tracking.opening import existing
from orchestrator.tracking.outbox import OUTBOX, located, posted
from orchestrator.tracking.pages import MlflowRuns
from orchestrator.tracking.store import default_uri
from orchestrator.tracking.tracker import Tracker

Status = Literal["finished", "failed", "stopped", "pruned", "unfinished"]
Curve = tuple[list[float], list[float]]
# MLflow's own states; a sweep's trials have more precise ones in their tag ``state``.
STATUSES: dict[str, Status] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
STATES: dict[str, Status] = {"done": "finished", "failed": "failed", "stopped": "stopped", "pruned": "pruned"}
EXPERIMENT = "experiment.json"


@dataclass(frozen=True)
class Card:
    """A run's identity, and how it ended.

    place    its folder, or its id in MLflow
    row      the row of the table that it was run for
    params   its config, flat, as MLflow has it; for a sweep's trial, its point
    parents  the places of the runs that it belongs to, nearest first
    remark   why it failed, if that is known
    """

    place: str
    key: str
    kind: str
    name: str
    experiment: str
    row: str | None
    status: Status
    params: Mapping[str, str]
    tags: Mapping[str, str]
    parents: tuple[str, ...] = ()
    remark: str = ""

    @property
    def pretrained(self) -> str | None:
        """The key of the pretraining that a fine-tuning starts from."""
        key = self.params.get("pretrained")
        return None if key == "scratch" else key


@runtime_checkable
class CardSource(Protocol):
    """A place to read runs from: folders, or an MLflow server."""

    def cards(self) -> list[Card]:
        """Return all runs."""
        ...

    def scores(self, card: Card) -> dict[str, float]:
        """Return the scores of a finished run: its best checkpoint's, or a pretraining's last metrics."""
        ...

    def patients(self, card: Card, metric: str, value: float) -> CaseScores | None:
        """Return the score of each patient behind a fine-tuning's metric; None where they are not known."""
        ...

    def curve(self, card: Card, metric: str) -> Curve:
        """Return a metric over the steps (from 1) that have it."""
        ...

    def log(self, place: str, files: Sequence[Path], into: str) -> str:
        """Log files to a run in MLflow; return the hindrance, or nothing."""
        ...

    def known(self, cards: Sequence[Card]) -> MlflowRuns | None:
        """Return where MLflow knows runs of one experiment; None if it does not know them or cannot be reached."""
        ...


class Folders:
    """The runs below some folders: homes, experiments, tables, sweeps."""

    def __init__(self, folders: Sequence[Path]) -> None:
        outboxes = {path for folder in folders for path in folder.rglob(OUTBOX)}
        folders_of_runs = [path.parent for path in sorted(outboxes) if posted(path.parent, ("start",))]
        cards = {folder: _card(folder) for folder in folders_of_runs}
        self._cards = {str(place): replace(card, parents=_ancestors(card, cards)) for place, card in cards.items()}

    def cards(self) -> list[Card]:
        return list(self._cards.values())

    def scores(self, card: Card) -> dict[str, float]:
        path = Path(card.place) / RESULT
        result = json.loads(path.read_text()) if path.exists() else {}
        if scores := result.get("scores"):
            return scores
        return judged(_last(_entries(Path(card.place))) | _summaries(Path(card.place)))

    def patients(self, card: Card, metric: str, value: float) -> CaseScores | None:
        return case_scores(Path(card.place) / CASES, metric, value)

    def curve(self, card: Card, metric: str) -> Curve:
        points = [(step, entry[metric]) for step, entry in _entries(Path(card.place)) if metric in entry]
        return [float(step) for step, _ in points], [float(value) for _, value in points]

    def log(self, place: str, files: Sequence[Path], into: str) -> str:
        if self._cards[place].status == "unfinished":
            return f"{self._cards[place].name} still runs"  # so its own process sends its outbox
        tracker = Tracker(Path(place), self.uri(place))
        for file in files:
            tracker.artifact(file, into)
        return tracker.flush(force=True) or ""

    def known(self, cards: Sequence[Card]) -> MlflowRuns | None:
        uri = self.uri(cards[0].place)
        run_ids = tuple(filter(None, (Tracker(Path(card.place), uri).run_id for card in cards)))
        if not run_ids:
            return None
        try:
            client = existing(uri)
            experiment = client.get_experiment_by_name(cards[0].experiment) if client else None
        except FAULTS:
            return None
        return MlflowRuns(uri, experiment.experiment_id, run_ids) if experiment else None

    def uri(self, place: str) -> str:
        """Return the MLflow that received a run or a table's or sweep's runs: the named one, or their home's."""
        cards = [card for card in self._cards.values() if place in (card.place, *card.parents)]
        settings = [Path(card.place) / EXPERIMENT for card in cards]
        named = [json.loads(path.read_text())["tracking"]["uri"] for path in settings if path.exists()]
        return next(filter(None, named), None) or default_uri(_experiment(Path(place), cards[0].experiment).parent)


def judged(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that MLflow calls ``best/...``, without the prefix, and ``test/...``; or all that are no
    measurements of the machine.
    """
    best = {name.removeprefix(BEST): value for name, value in metrics.items() if name.startswith((BEST, TEST))}
    return best or {name: value for name, value in metrics.items() if not name.startswith(f"{SYSTEM}/")}


def members(folder: Path) -> dict[str, str]:
    """Return the rows of a table's runs by folder, from its CSV.

    Runs that a table found done are children of the run that they were first run for: only the CSV names them.
    """
    rows: dict[str, str] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                if line.get("run") and line.get("row"):
                    rows[str(folder.parent / line["run"])] = line["row"]
    return rows


def _card(folder: Path) -> Card:
    lines = posted(folder, ("start", "params", "tags", "finish"))
    start = next(line for line in lines if line["op"] == "start")
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    for line in lines:
        tags |= line.get("tags", {})
        params |= line.get("params", {})
    status, remark = _status(folder, lines, tags)
    return Card(
        place=str(folder),
        key=start["key"],
        kind=tags.get("kind", ""),
        name=start["name"],
        experiment=start["experiment"],
        row=tags.get("row"),
        status=status,
        params=params,
        tags=tags,
        parents=(str(located(folder, start["parent"])),) if start["parent"] else (),
        remark=remark,
    )


def _experiment(folder: Path, name: str) -> Path:
    """Return the experiment's folder that holds a run's folder."""
    return next((above for above in folder.parents if above.name == name), folder.parent)


def _ancestors(card: Card, cards: Mapping[Path, Card]) -> tuple[str, ...]:
    line: list[str] = []
    own: Card | None = card
    while own and own.parents:
        line.append(own.parents[0])
        own = cards.get(Path(line[-1]))
    return tuple(line)


def _status(folder: Path, lines: Sequence[dict[str, Any]], tags: Mapping[str, str]) -> tuple[Status, str]:
    """Return how a run ended, and why it failed if it did; a training writes its result last."""
    if (folder / RESULT).exists():
        return "finished", ""
    if lines[-1]["op"] != "finish":
        return "unfinished", ""
    status = STATES.get(tags.get("state", ""), STATUSES[lines[-1]["status"]])
    fatal = [line["fatal"] for line in Tail(folder / HISTORY).read() if "fatal" in line]
    return status, tags.get("reason") or (fatal[-1] if fatal else "")


def _entries(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the steps from 1 with their metrics, of all stages one after the other.

    A sweep's trial has no history: what it has reported is in its outbox.
    """
    if not (folder / HISTORY).exists():
        return [(entry["step"] + 1, entry) for post in posted(folder, ("metrics",)) for entry in post["entries"]]
    return [(step + 1, line) for step, line in Once().new(Tail(folder / HISTORY).lines())]


def _last(entries: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, float]:
    """Return the last value of every metric."""
    values: dict[str, float] = {}
    for _, entry in entries:
        values |= metrics_of(entry)
    return values


def _summaries(folder: Path) -> dict[str, float]:
    """Return the single numbers that a run has logged."""
    values: dict[str, float] = {}
    for line in posted(folder, ("summary",)):
        values |= line["values"]
    return values
