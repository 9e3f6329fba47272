"""Compare: any runs side by side, as a table, a CSV and figures, stored beside the table or sweep of the runs."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from data.shards.writer import write_atomically
from data.spelling import did_you_mean
from orchestrator.direction import BEST, TEST, direction_of, is_detail
from orchestrator.results import charts, comparison, curve
from orchestrator.results.comparison import ComparisonLine, ComparisonSubject, Scores
from orchestrator.results.grouping import KINDS, SEEDS, Row, differing_fields, rows_by, rows_of, settings_of
from orchestrator.results.row_statistics import row_statistics
from orchestrator.results.run_cards import Card, CardSource, Curve
from orchestrator.results.selection import GROUPS, RunChoice, counted, select
from orchestrator.results.text import as_markdown
from orchestrator.results.usual import noted
from orchestrator.runs import identity
from orchestrator.tracking.pages import is_served, publish, view_of
from orchestrator.tracking.tracker import plain

USUAL_METRICS = {"finetune": "score", "pretrain": "collapse"}
NOUNS = {"finetune": "fine-tunings", "pretrain": "pretrainings", "trial": "trials"}
USUAL_REFERENCE = "scratch"
# These fields tell runs apart, but not by anything that was decided about them.
NO_AXES = ("name", "pretrained", "data.shards", "downstream.shards")


@dataclass(frozen=True)
class Request:
    """The comparison that a person asks for.

    names   patterns; a run is included if its name, row or folder matches one of them; none: all runs
    by      fields, or ``row``, by which runs are grouped; none: all fields that differ, except seeds
    curves  metrics of the pretrainings that are drawn over their steps
    """

    kind: str | None = None
    names: tuple[str, ...] = ()
    metric: str | None = None
    also: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    reference: str | None = None
    curves: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison in numbers; ``scores`` holds the scores of every finished run, by its place."""

    choice: RunChoice
    request: Request
    asked: ComparisonSubject
    lines: tuple[ComparisonLine, ...]
    scores: Scores

    @property
    def title(self) -> str:
        num_runs = sum(len(line.row.cards) for line in self.lines)
        return f"{self.choice.title}: {self.asked.metric} of {num_runs} {NOUNS[self.asked.kind]}"

    @property
    def text(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        """Title, heading, rows and notes, as they are typeset."""
        return self.title, *comparison.cells(self.asked, self.lines), comparison.notes(self.asked, self.lines)

    @property
    def identity(self) -> dict[str, Any]:
        """The request and its folders: equal requests are the same comparison, whichever runs exist by then."""
        return {"experiment": self.choice.folder.name, "folders": self.choice.asked, **asdict(self.request)}

    @property
    def folder(self) -> Path:
        """The folder of the comparison, unless another is given."""
        scope = plain(Path(self.choice.group).name) + "-" if self.choice.group else ""
        return self.choice.folder / f"comparison-{scope}{self.key}"

    @property
    def key(self) -> str:
        """The comparison's key; equal comparisons have equal keys."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]


def compare(choice: RunChoice, request: Request) -> ComparisonResult:
    """Group the requested runs into rows and test the rows against the reference.

    Raises ValueError if there are no runs, or no such metric, field or reference.
    """
    request, usual_reference = _completed(choice, request)
    kind, cards = select(choice, request.kind, request.names)
    pretrainings = _pretrainings(choice.source)
    settings = {card.place: settings_of(card, pretrainings.get(card.pretrained or "")) for card in cards}
    rows = rows_by(cards, settings, request.by) if request.by else rows_of(cards, settings)
    scores: Scores = {card.place: choice.source.scores(card) for card in cards if card.status == "finished"}
    asked = _asked(kind, request, rows, scores, usual_reference)
    if kind == "pretrain":
        scores = {card.place: _ends(choice.source, card, asked) for card in cards if card.place in scores}
    rows.sort(key=lambda row: (row.name != asked.reference, counted(row.name)))
    patients = {
        card.place: choice.source.patients(card, asked.metric, scores[card.place][asked.metric])
        for card in cards
        if kind == "finetune" and asked.metric in scores.get(card.place, {})
    }
    lines = comparison.lines_of(asked, rows, scores, patients)
    return ComparisonResult(choice, request, asked, tuple(lines), scores)


def write(compared: ComparisonResult, folder: Path) -> list[Path]:
    """Write the comparison as Markdown, CSV and figures; return the files.

    Raises ValueError if the folder holds another comparison.
    """
    identity.own(folder, compared.identity, "give another --out, or delete the folder")
    asked = compared.asked
    files = {
        "comparison.md": as_markdown(*compared.text).encode(),
        "comparison.csv": comparison.comma_separated(asked, compared.lines, compared.scores).encode(),
        "statistics.csv": row_statistics(compared.lines, asked.reference, direction_of(asked.metric)).encode(),
        **dict(_figures(compared)),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def log(compared: ComparisonResult, files: Sequence[Path]) -> str:
    """Log files to the table or sweep that all runs belong to, if any; return where they are, or why not."""
    choice = compared.choice
    shared = set.intersection(*(set(card.parents) for line in compared.lines for card in line.row.cards))
    groups = [card for card in choice.source.cards() if card.kind in GROUPS]
    parents = [card for card in groups if card.place == choice.group or (not choice.group and card.place in shared)]
    if not parents:
        return "not logged: the runs belong to no single table or sweep"
    hindrance = choice.source.log(parents[0].place, files, files[0].parent.name)
    return f"not logged: {hindrance}" if hindrance else f"among the artifacts of {parents[0].name!r}"


@dataclass(frozen=True)
class Page:
    """MLflow's page of a comparison; ``home`` is the home to serve first, if nothing answers yet."""

    address: str
    home: Path | None


def page(compared: ComparisonResult) -> Page | None:
    """Return MLflow's page of these runs, the best first, on this metric; None if MLflow does not have that."""
    asked, cards = compared.asked, [card for line in compared.lines for card in line.row.cards]
    known = compared.choice.source.known(cards)
    if known is None or is_detail(asked.metric):  # MLflow lists no scores of single labels
        return None
    as_logged = asked.kind == "pretrain" or asked.metric.startswith(TEST)
    metric = asked.metric if as_logged else f"{BEST}{asked.metric}"
    view = view_of(known, asked.kind, metric, asked.metric, _axes([card.params for card in cards]))
    try:
        address = publish(known, f"raydiology-{compared.key}", view)
    except MlflowException:
        return None
    return Page(address, known.home if known.home and not is_served(known.server) else None)


def _axes(params: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the fields that all runs have and in which they differ: methods and networks first, seeds last."""
    fields = [field for field in differing_fields(params) if field not in NO_AXES]
    shared = [field for field in fields if all(field in own for own in params)]
    return sorted(shared, key=lambda field: (not field.endswith(KINDS), field in SEEDS))


def _completed(choice: RunChoice, request: Request) -> tuple[Request, str]:
    """Return the request, completed by what the table or sweep is judged by, and the usual reference."""
    usual = noted(Path(choice.group)) if choice.group else None
    if usual is None or request.metric:
        return request, USUAL_REFERENCE
    asked = replace(request, metric=usual.metric, also=request.also or usual.also)
    return asked, usual.reference or USUAL_REFERENCE


def _asked(
    kind: str, request: Request, rows: Sequence[Row], scores: Scores, usual_reference: str
) -> ComparisonSubject:
    """Settle the metric and the reference; raise ValueError if no run has a score of the metric's name."""
    known = sorted({name for of_run in scores.values() for name in of_run})
    usual = USUAL_METRICS.get(kind, "score")
    metric = request.metric or (usual if usual in known or not known else known[0])
    asked = ComparisonSubject(
        kind, metric.removeprefix(BEST), tuple(name.removeprefix(BEST) for name in request.also)
    )
    for name in asked.metrics:
        if known and name not in known:
            raise ValueError(
                f"--metric {name}: not one of the scores of these runs; they are: {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
    names = [row.name for row in rows]
    return replace(asked, reference=request.reference or (usual_reference if usual_reference in names else None))


def _ends(source: CardSource, card: Card, asked: ComparisonSubject) -> dict[str, float]:
    """Return the ends of a pretraining's curves, by which sweeps judge it."""
    ends = {}
    for metric in asked.metrics:
        if values := source.curve(card, metric)[1]:
            ends[metric] = curve.end(values)
    return ends


def _pretrainings(source: CardSource) -> dict[str, Card]:
    return {card.key: card for card in source.cards() if card.kind == "pretrain"}


def _figures(compared: ComparisonResult) -> Iterator[tuple[str, bytes]]:
    """Draw scores, learning curves and the pretrainings' curves, each if there is something to draw."""
    metric, source = compared.asked.metric, compared.choice.source
    scored = [
        charts.ScoredRow(line.name, line.summary.values, line.summary.mean, line.interval)
        for line in compared.lines
        if line.summary.mean is not None
    ]
    if scored:
        yield "scores.png", charts.draw_scores(scored, compared.title, metric)
    runs = {line.name: line.scored or line.row.cards for line in compared.lines}
    learning = _curves(source, runs, metric)
    # A single validation at the end is no curve.
    if any(len(x) > 1 for curves in learning.values() for x, _ in curves):
        yield "learning.png", charts.draw_bands(learning, f"{metric} while training", "step", metric)
    known = _pretrainings(source)
    starts = {name: _starts(cards, known) for name, cards in runs.items()}
    for name in compared.request.curves:
        if curves := _curves(source, starts, name):
            yield f"curve-{plain(name)}.png", charts.draw_bands(curves, f"{name} while pretraining", "step", name)


def pretrainings_of(compared: ComparisonResult, cards: Sequence[Card]) -> list[Card]:
    """Return the pretrainings among some runs, the pretrainings that they start from, and those of their trials."""
    return _starts(cards, _pretrainings(compared.choice.source))


def _starts(cards: Sequence[Card], known: Mapping[str, Card]) -> list[Card]:
    """Return the pretrainings among some runs, the pretrainings that they start from, and those of their trials."""
    keys = {card.key if card.kind == "pretrain" else card.pretrained for card in cards}
    trials = {card.place for card in cards if card.kind == "trial"}
    return [card for key, card in known.items() if key in keys or trials.intersection(card.parents)]


def _curves(source: CardSource, runs: Mapping[str, Sequence[Card]], metric: str) -> dict[str, list[Curve]]:
    """Return the curves of each name's runs that have the metric; names without any are left out."""
    found = {name: [source.curve(card, metric) for card in cards] for name, cards in runs.items()}
    drawn = {name: [curve for curve in curves if curve[0]] for name, curves in found.items()}
    return {name: curves for name, curves in drawn.items() if curves}
