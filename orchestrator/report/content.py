"""Content of a report: the facts and figures of a comparison, in the order in which a reader asks for them."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.shards.index import ShardSet
from data.shards.writer import ShardError
from orchestrator.direction import best_first, direction_of, words
from orchestrator.report.charts import Chart, charts_of
from orchestrator.report.pictures import CaseStrip, strips_of
from orchestrator.results.compare import ComparisonResult
from orchestrator.results.comparison import DECIMALS, ComparisonLine, cells, notes
from orchestrator.results.findings import findings_in
from orchestrator.results.run_cards import Card
from orchestrator.results.text import answer, spread
from orchestrator.results.usual import noted
from orchestrator.tracking.tags import DESCRIPTION

MOST_FAILURES = 50


@dataclass(frozen=True)
class DataSheet:
    """Named facts, of a data set for example."""

    heading: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ReportContent:
    """All that the page shows.

    heading, rows  the table as text, the best row first; ``best`` tells whether that row is better than each other
    """

    title: str
    answer: str
    about: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: bool
    notes: tuple[str, ...]
    charts: tuple[Chart, ...]
    cases: tuple[CaseStrip, ...]
    failures: tuple[str, ...]
    data: tuple[DataSheet, ...]
    made: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def report_of(compared: ComparisonResult) -> ReportContent:
    """Gather a report on compared runs."""
    lines, asked = compared.lines, compared.asked
    ranked = _ranked(compared)
    found = findings_in(compared.choice.group)
    heading, rows = cells(asked, ranked)
    for line, row in zip(ranked, rows, strict=True):  # a trial may be the mean of runs, which its row cannot show
        names = {card.name for card in line.row.cards}
        if len(names) == 1 and (shown := (found.shown or {}).get(*names)):
            row[heading.index(asked.metric)] = shown
    direction = direction_of(asked.metric)
    group = _group(compared)
    about = [f"{asked.metric}: {words(direction)}"] if direction else []
    return ReportContent(
        title=compared.title,
        answer=found.answer or _answer(lines, asked.metric),
        about="; ".join([*about, f"{sum(len(line.scored) for line in lines)} runs in {len(lines)} rows"]),
        heading=tuple(heading),
        rows=tuple(tuple(row) for row in rows),
        best=bool(ranked) and ranked[0].alike == (),
        notes=(*found.notes, *notes(asked, lines)),
        charts=tuple(charts_of(compared, ranked)),
        cases=tuple(strips_of(ranked, asked.metric, direction)),
        failures=tuple(_shortened(_failures(lines))),
        data=tuple(_data(lines)),
        made=tuple(_made(lines, group)),
        commands=tuple(_commands(compared, group)),
    )


def _ranked(compared: ComparisonResult) -> list[ComparisonLine]:
    """Return the rows from the best mean to the worst, those without one last."""
    means = [line.summary.mean for line in compared.lines]
    return [compared.lines[place] for place in best_first(means, direction_of(compared.asked.metric))]


def _answer(lines: Sequence[ComparisonLine], metric: str) -> str:
    """Say in one sentence which row is best, or that none is."""
    best = next((line.summary.mean for line in lines if line.alike is not None), None)
    score = f"{metric} {spread(best, None, DECIMALS)}"
    said = answer([line.name for line in lines], [line.alike for line in lines], score)
    if not said:
        return "There is only one row with a score, so nothing is compared."
    return f"{said.replace('no row is best', 'No row is best', 1)}."


def _failures(lines: Sequence[ComparisonLine]) -> list[str]:
    """Say which runs have no score, and why."""
    missing = [(line.name, card) for line in lines for card in line.row.cards if card not in line.scored]
    return [
        f"{name}: {card.name}: {card.status if card.status != 'finished' else 'finished without this metric'}"
        f"{f': {card.remark}' if card.remark else ''}"
        for name, card in missing
    ]


def _shortened(failures: list[str]) -> list[str]:
    """Return the first failures, and how many more there are."""
    more = len(failures) - MOST_FAILURES
    return [*failures[:MOST_FAILURES], *([f"and {more} more"] if more > 0 else [])]


def _data(lines: Sequence[ComparisonLine]) -> Iterator[DataSheet]:
    """Describe each set of shards that the runs read."""
    uses: dict[str, Counter[str]] = {}
    for line in lines:
        for card in line.scored:
            for field, value in card.params.items():
                if field.endswith(".shards"):
                    use = "judged" if field.startswith("downstream") else "pretrained"
                    uses.setdefault(value, Counter())[use] += 1
    for uri in uses:
        try:
            shards = ShardSet.open(uri)
        except (ShardError, OSError, ValueError):
            yield DataSheet(Path(uri).name, (("digest", "not known: the shards are out of reach"),))
            continue
        found = {name.replace("_", " "): f"{count:,}" for name, count in shards.counts.items()}
        splits = Counter(shards.rows["split"].to_pylist())
        facts = {
            "recipe": str(shards.recipe.get("name")),
            "digest": shards.digest[:16],
            "samples": f"{len(shards.rows):,} ({', '.join(f'{count:,} {split}' for split, count in splits.items())})",
            "patients": f"{len(set(shards.rows['patient'].to_pylist())):,}",
            **found,
        }
        yield DataSheet(Path(uri).name, tuple(facts.items()))


def _made(lines: Sequence[ComparisonLine], group: Card | None) -> Iterator[tuple[str, str]]:
    cards = [card for line in lines for card in line.scored]
    commits = sorted({card.tags.get("git_commit", "unknown")[:12] for card in cards})
    if commits:
        yield "code", ", ".join(commits)
    for tag, name in (("cluster_cpus", "CPUs of the cluster"), ("cluster_gpus", "GPUs of the cluster")):
        if found := sorted({card.tags[tag] for card in cards if tag in card.tags}):
            yield name, ", ".join(found)
    if group and DESCRIPTION in group.tags:
        yield "about", group.tags[DESCRIPTION].partition("\n\n")[0]


def _group(compared: ComparisonResult) -> Card | None:
    """Return the table or sweep that was asked for, if it was one."""
    place = compared.choice.group
    return next((card for card in compared.choice.source.cards() if card.place == place), None) if place else None


def _commands(compared: ComparisonResult, group: Card | None) -> Iterator[str]:
    """Return the commands that run and compare these runs again."""
    usual = noted(Path(group.place)) if group else None
    if usual and usual.again:
        yield usual.again
    home = Path(compared.choice.folder.parent.name) / compared.choice.folder.name
    where = shlex.join(str(home / asked) for asked in compared.choice.asked or ("",))
    yield f"raydiology report {where} --metric {shlex.quote(compared.asked.metric)}"
