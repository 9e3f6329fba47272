"""Comparison: rows of runs as numbers, with notes on facts that the numbers hide. Pure: nothing is read here."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from data.spelling import did_you_mean
from orchestrator.direction import direction_of
from orchestrator.judging.case_scores import CaseScores
from orchestrator.results.claims import Best, RowScores, against, best_of, corrected, joined
from orchestrator.results.grouping import DATASET, FOLD, NUM_FOLDS, SEEDS, Row, differing_fields
from orchestrator.results.run_cards import Card
from orchestrator.results.statistics import Comparison, Summary, confidence_interval, summarise
from orchestrator.results.text import (
    NOTHING,
    answer,
    as_csv,
    gain,
    shortened,
    significance,
    spread,
    tests_explained,
)

DECIMALS = 3
_JUDGED = {
    "finetune": "of the best checkpoint",
    "pretrain": "of the last hundredth of the steps",
    "trial": "as the sweep judges it",
}
# If these differ, the same metric measures something else: other patients, other labels, another mean.
_JUDGED_BY = (
    DATASET, "downstream.val_split", "downstream.num_folds", "downstream.task.name", "downstream.task.labels",
    "downstream.task.regions", "downstream.task.convention",
    "downstream.task.scored_class", "downstream.task.kind", "downstream.task.score",
)  # fmt: skip
# If these differ, the metric is the same but the starts are not equal.
_GIVEN = (DATASET, "downstream.label_fraction")

Scores = Mapping[str, Mapping[str, float]]
"""The scores of finished runs, by the run's place."""
Patients = Mapping[str, CaseScores | None]
"""The scores of the patients behind a run's metric, where they are known, by the run's place."""


@dataclass(frozen=True)
class ComparisonSubject:
    """The subject: a kind of run, its metric, further metrics, and the reference row for p, if any."""

    kind: str
    metric: str
    also: tuple[str, ...] = ()
    reference: str | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric, *self.also)


@dataclass(frozen=True)
class ComparisonLine:
    """One row in numbers. ``scored`` holds the runs behind ``summary``; runs without a score are in ``row`` only.

    comparison  against the reference; None for the reference itself, and without a reference
    alike       of the row with the best mean, the rows that cannot be told from it; None for others
    """

    row: Row
    scored: tuple[Card, ...]
    scores: RowScores
    summary: Summary
    interval: tuple[float, float] | None
    comparison: Comparison | None
    also: Mapping[str, Summary]
    alike: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self.row.name


def lines_of(
    asked: ComparisonSubject, rows: Sequence[Row], scores: Scores, patients: Patients | None = None
) -> list[ComparisonLine]:
    """Summarise each row, test it against the reference, and find the row that is better than all others.

    Raises ValueError if no row has the reference's name.
    """
    names = [row.name for row in rows]
    if asked.reference is not None and asked.reference not in names:
        raise ValueError(
            f"--reference {asked.reference}: not one of the rows; they are: {', '.join(names)}"
            f"{did_you_mean(asked.reference, names)}"
        )
    held = [_row_scores(asked, row, scores, patients or {}) for row in rows]
    compared = _compared(asked, rows, held)
    best = None if _judged_apart(asked, rows) else best_of(held, direction_of(asked.metric))
    return [
        _line(asked, row, scores, held[place], compared.get(place), _alike(place, best, names))
        for place, row in enumerate(rows)
    ]


def _row_scores(asked: ComparisonSubject, row: Row, scores: Scores, patients: Patients) -> RowScores:
    repeats = _repeats(asked, row, scores)
    return RowScores(
        [fmean(scores[card.place][asked.metric] for card in folds) for folds in repeats],
        [joined([patients.get(card.place) for card in folds]) for folds in repeats],
    )


def _compared(
    asked: ComparisonSubject, rows: Sequence[Row], held: Sequence[RowScores]
) -> dict[int, Comparison | None]:
    """Compare each row with the reference, if there is one."""
    reference = next((place for place, row in enumerate(rows) if row.name == asked.reference), None)
    if reference is None:
        return {}
    compared: dict[int, Comparison | None] = {}
    for place, row in enumerate(rows):
        if place != reference:
            apart = _judged_apart(asked, [row, rows[reference]])
            other = Comparison(None, f"judged by another {apart[0]}") if apart else None
            compared[place] = other or against(held[place], held[reference])
    return corrected(compared)


def _alike(place: int, best: Best | None, names: Sequence[str]) -> tuple[str, ...] | None:
    return tuple(names[other] for other in best.alike) if best and place == best.row else None


def _line(
    asked: ComparisonSubject,
    row: Row,
    scores: Scores,
    own: RowScores,
    comparison: Comparison | None,
    alike: tuple[str, ...] | None,
) -> ComparisonLine:
    repeats = _repeats(asked, row, scores)
    scored = tuple(card for folds in repeats for card in folds)
    summary = summarise(own.values)
    also = {
        name: summarise(
            [fmean(scores[card.place][name] for card in folds) for folds in repeats if _have(name, folds, scores)]
        )
        for name in asked.also
    }
    return ComparisonLine(row, scored, own, summary, confidence_interval(summary), comparison, also, alike)


def cells(asked: ComparisonSubject, lines: Sequence[ComparisonLine]) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows as text."""
    heading = ["row", asked.metric, "95 % interval", "n", "runs", *asked.also]
    rows = [
        [
            line.name,
            spread(line.summary.mean, line.summary.deviation, DECIMALS),
            NOTHING
            if line.interval is None
            else f"{line.interval[0]:.{DECIMALS}f} to {line.interval[1]:.{DECIMALS}f}",
            str(line.summary.num_values),
            "  ".join(f"{value:.{DECIMALS}f}" for value in line.summary.values) or NOTHING,
            *(spread(summary.mean, summary.deviation, DECIMALS) for summary in line.also.values()),
        ]
        for line in lines
    ]
    if asked.reference is not None:
        heading[5:5] = ["difference", f"p against {asked.reference}"]
        for row, line in zip(rows, lines, strict=True):
            row[5:5] = [gain(line.comparison, DECIMALS), significance(line.comparison)]
    return heading, rows


def notes(asked: ComparisonSubject, lines: Sequence[ComparisonLine]) -> list[str]:
    """Explain the cells: how they were computed, which runs are missing, and which rows must not be compared."""
    made = f"{asked.metric} {_JUDGED[asked.kind]}; mean ± sample deviation; 95 % interval of the mean by Student's t"
    folds = sorted({_num_folds(card) for line in lines for card in line.scored} - {0})
    said = [made, *(f"a run is the mean over {number} folds" for number in folds)]
    said += [*tests_explained([line.comparison for line in lines], DECIMALS)]
    said += filter(None, [answer([line.name for line in lines], [line.alike for line in lines])])
    said += _incomparable(asked, [line.row for line in lines])
    remarks: dict[str, list[str]] = {}
    for line in lines:
        for remark in _remarks(line):
            remarks.setdefault(remark, []).append(line.name)
    said += [f"{'; '.join(names)}: {remark}" for remark, names in remarks.items()]
    commits = {card.tags.get("git_commit", "unknown")[:7] for line in lines for card in line.scored}
    if len(commits) > 1:
        said.append(f"the runs come from {len(commits)} commits of the code: {', '.join(sorted(commits))}")
    return said


def comma_separated(asked: ComparisonSubject, lines: Sequence[ComparisonLine], scores: Scores) -> str:
    """Return one CSV line per run: row, seeds, the fields in which the runs differ, values with every digit."""
    cards = [(line, card) for line in lines for card in line.row.cards]
    fields = [f for f in differing_fields([card.params for _, card in cards]) if f not in (*SEEDS, "pretrained")]
    decided, metrics = (*SEEDS, "pretrained", *fields), asked.metrics
    rows = [
        [
            *(line.name, f"{card.kind}-{card.key}", card.experiment, card.status),
            *(card.params.get(field) for field in decided),
            *(scores.get(card.place, {}).get(metric) for metric in metrics),
            card.remark,
        ]
        for line, card in cards
    ]
    return as_csv(["row", "run", "experiment", "status", *decided, *metrics, "remark"], rows)


def _repeats(asked: ComparisonSubject, row: Row, scores: Scores) -> list[list[Card]]:
    """Return the runs of each repeat that has a score: one run, or all folds of a cross-validation."""
    repeats: dict[frozenset[tuple[str, str]] | str, list[Card]] = {}
    for card in row.cards:
        if asked.metric in scores.get(card.place, {}):
            others = frozenset((field, value) for field, value in card.params.items() if field != FOLD)
            repeats.setdefault(others if _num_folds(card) else card.place, []).append(card)
    return [folds for folds in repeats.values() if len(folds) == (_num_folds(folds[0]) or 1)]


def _num_folds(card: Card) -> int:
    """Return how many folds a fine-tuning's repeat has; 0 where it is not cross-validated."""
    told = card.params.get(NUM_FOLDS, "") if card.kind == "finetune" else ""
    return int(told) if told.isdigit() else 0


def _have(name: str, folds: Sequence[Card], scores: Scores) -> bool:
    return all(name in scores[card.place] for card in folds)


def _remarks(line: ComparisonLine) -> Iterator[str]:
    """Explain a row: which runs are missing, why it has no p, and why its runs are not independent."""
    missing = [card for card in line.row.cards if card not in line.scored]
    for status, count in sorted(Counter(card.status for card in missing).items()):
        ended = _left_out([card for card in missing if card.status == status]) if status == "finished" else status
        reasons = sorted({card.remark for card in missing if card.status == status and card.remark})
        yield ": ".join([f"{count} {'run' if count == 1 else 'runs'} {ended}, not counted", *reasons])
    if line.comparison and line.comparison.p is None:
        yield f"no p: {line.comparison.remark}"
    starts = {card.pretrained for card in line.scored if card.pretrained}
    num_runs = line.summary.num_values
    if 0 < len(starts) < num_runs and None not in (card.pretrained for card in line.scored):
        shared = f"{len(starts)} pretraining{'' if len(starts) == 1 else 's'}"
        yield f"{num_runs} runs share {shared}, so they are not independent: interval and p are too small"
    if pooled := line.row.pooled:
        yield f"pools runs that differ in {', '.join(shortened(field, pooled) for field in pooled)}"


def _left_out(finished: Sequence[Card]) -> str:
    folded = any(map(_num_folds, finished))
    return (
        "finished without this metric, or without the other folds of its repeat"
        if folded
        else "finished without this metric"
    )


def _judged_apart(asked: ComparisonSubject, rows: Sequence[Row]) -> list[str]:
    """List the settings that make a metric mean different things in different rows."""
    return [field for field in differing_fields([row.settings for row in rows]) if field in _judges(asked)]


def _judges(asked: ComparisonSubject) -> tuple[str, ...]:
    if asked.kind != "pretrain":
        return _JUDGED_BY
    return ("method.name",) if asked.metric == "loss" else ()


def _incomparable(asked: ComparisonSubject, rows: Sequence[Row]) -> Iterator[str]:
    differing = differing_fields([row.settings for row in rows])
    for field in differing:
        if field in (*_judges(asked), *_GIVEN):
            values = [f"{row.name}: {row.settings.get(field, 'none')}" for row in rows]
            verdict = "not comparable" if field in _judges(asked) else "not on equal terms"
            yield f"{verdict}: the rows differ in {shortened(field, differing)} ({'; '.join(values)})"
