"""Charts of a report: which figures a comparison has, and what each shows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from orchestrator.direction import TEST
from orchestrator.report import figures
from orchestrator.report.search import searched
from orchestrator.results.charts import Looks, ScoredRow, looks_of
from orchestrator.results.claims import shared_cases
from orchestrator.results.compare import ComparisonResult, pretrainings_of
from orchestrator.results.comparison import ComparisonLine
from orchestrator.results.run_cards import Card, Curve
from orchestrator.results.statistics import Summary
from orchestrator.results.usual import noted

HEALTH = {
    "effective_rank": "How many directions the features use: one that falls tells a collapse.",
    "collapse": "0: features vary as much as they can; 1: all are the same.",
    "loss": "The pretraining's own loss: those of different methods mean different things.",
}
OF_LABELS = ("dice", "auc", "f1", "ap50", "recall")
HOUR_S = 3600


@dataclass(frozen=True)
class Chart:
    """A figure as SVG, with its heading and what it shows."""

    heading: str
    svg: str
    words: str


def charts_of(compared: ComparisonResult, ranked: Sequence[ComparisonLine]) -> Iterator[Chart]:
    """Yield the figures for which there are numbers, those that answer first."""
    metric = compared.asked.metric
    scored = [line for line in ranked if line.summary.mean is not None]
    looks = looks_of([line.name for line in scored])
    if scored:
        rows = [ScoredRow(one.name, one.summary.values, one.summary.mean or 0.0, one.interval) for one in scored]
        text = "Dots are runs, bars their means, lines the 95 % interval of the mean over runs."
        yield Chart("Scores of runs", figures.scores(rows, metric, looks), text)
    yield from _over(compared, scored)
    yield from (Chart(*parts) for parts in searched(compared))
    if patients := _by_patient(scored):
        text = "Dots are patients, each a mean over the row's runs, scaled such that their mean is the row's score."
        svg = figures.by_patient(patients, metric, looks)
        yield Chart("Scores of patients", svg, f"{text} Bars are the middle patients.")
    kind, labels = _by_label(compared, scored)
    if max(map(len, labels.values()), default=0) > 1:
        text = f"{kind} of each label or class, a mean over the row's runs."
        yield Chart("Scores of labels", figures.by_label(labels, kind, looks), text)
    yield from _training(compared, scored, looks)


def _over(compared: ComparisonResult, scored: Sequence[ComparisonLine]) -> Iterator[Chart]:
    """Draw the rows of a table over the field in which they differ, if it has one."""
    usual = noted(Path(compared.choice.group)) if compared.choice.group else None
    summaries = {line.name: line.summary for line in scored}
    if usual is None or usual.over is None:
        return
    lines: dict[str, dict[float, Summary]] = {}
    for name, value, row in usual.points:
        if row in summaries:
            lines.setdefault(name, {})[value] = summaries[row]
    if lines:
        text = "Dots are means over runs, bars their sample deviation, faint dots the runs."
        svg = figures.over(lines, usual.over, compared.asked.metric)
        yield Chart(f"{compared.asked.metric} over {usual.over}", svg, text)


def _by_patient(scored: Sequence[ComparisonLine]) -> dict[str, list[float]]:
    found = {line.name: shared_cases([line.scores]) for line in scored}
    return {name: own[0].mean(0).tolist() for name, own in found.items() if own}


def _by_label(
    compared: ComparisonResult, scored: Sequence[ComparisonLine]
) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the first kind of metric that the runs have of labels, and its means by row and label."""
    prefix = TEST if compared.asked.metric.startswith(TEST) else ""
    for kind in OF_LABELS:
        start = f"{prefix}{kind}/"
        rows: dict[str, dict[str, float]] = {}
        for line in scored:
            of_runs = [compared.scores.get(card.place, {}) for card in line.scored]
            labels = dict.fromkeys(name for own in of_runs for name in own if name.startswith(start))
            rows[line.name] = {
                name.removeprefix(start): fmean(own[name] for own in of_runs if name in own) for name in labels
            }
        if any(rows.values()):
            return f"{prefix}{kind}", rows
    return "", {}


def _training(compared: ComparisonResult, scored: Sequence[ComparisonLine], looks: Looks) -> Iterator[Chart]:
    """Draw how the rows were trained: curves, what they cost, and the health of their pretrainings."""
    metric = compared.asked.metric
    starts = {line.name: pretrainings_of(compared, line.scored) for line in scored}
    validated = metric.removeprefix(TEST)
    if learning := _curves(compared, {line.name: line.scored for line in scored}, validated):
        text = "Means over the row's runs, with a band of one sample deviation."
        yield Chart(f"{validated} while training", figures.curves(learning, "step", validated, looks), text)
    costs = {line.name: _hours(compared, line.scored, starts[line.name]) for line in scored}
    known = {line.name: (hours, line.summary.mean or 0.0) for line in scored if (hours := costs[line.name])}
    if len(known) > 1:
        text = "Hours in which a run's steps were trained, its pretraining with it, without start and validation."
        svg = figures.against_cost(known, "hours of training a run", metric, looks)
        yield Chart("Score against cost", svg, text)
    once: dict[tuple[str, ...], str] = {}  # rows that share their pretrainings are drawn once
    for row, cards in starts.items():
        once.setdefault(tuple(card.key for card in cards), row)
    for name, text in HEALTH.items():
        if found := _curves(compared, {row: starts[row] for row in once.values()}, name):
            yield Chart(f"{name} while pretraining", figures.curves(found, "step", name, looks), text)


def _curves(compared: ComparisonResult, runs: Mapping[str, Sequence[Card]], metric: str) -> dict[str, list[Curve]]:
    """Return the curves of each row's runs that have the metric more than once."""
    found = {row: [compared.choice.source.curve(card, metric) for card in cards] for row, cards in runs.items()}
    kept = {row: [curve for curve in own if len(curve[0]) > 1] for row, own in found.items()}
    return {row: own for row, own in kept.items() if own}


def _hours(compared: ComparisonResult, runs: Sequence[Card], starts: Sequence[Card]) -> float | None:
    """Return the hours that a run of a row took, with a mean pretraining before it; None where that is not known."""
    fields = {"finetune": "downstream.budget.batch_size", "pretrain": "budget.batch_size"}
    means = []
    for cards in (runs, starts):
        hours = []
        for card in cards:
            if card.kind == "pretrain" and not compared.choice.source.curve(card, "loss")[1]:
                continue  # its encoder was only filled from a file
            batch, rates = (
                card.params.get(fields.get(card.kind, "")),
                compared.choice.source.curve(card, "samples_per_s"),
            )
            if not batch or not batch.isdigit() or not rates[1]:
                return None
            hours.append(sum(int(batch) / rate for rate in rates[1] if rate > 0) / HOUR_S)
        means.append(fmean(hours) if hours else 0.0)
    return sum(means) or None
