"""Outcome: how the trials of a table ended, and trials back to rows. Pure: nothing is run or read here."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from statistics import fmean

from orchestrator.results.statistics import Comparison, Summary, summarise, welch
from orchestrator.tables.choice import Contender, Settings, TableChoice, choose, settings_of, worded
from orchestrator.tables.grid import TableConfig, TableTrial
from orchestrator.tables.row import PaperNumbers, TableRow


@dataclass(frozen=True)
class Outcome:
    """The result of a trial: its value and the values of further metrics, or the reason why it has none.

    ``run`` names the folder of its fine-tuning. Of a trial that tries a value, ``validation`` is the score by which
    the value may be chosen, and ``validated_on`` names the samples.
    """

    trial: TableTrial
    value: float | None
    failure: str = ""
    also: dict[str, float] = field(default_factory=dict)
    run: str = ""
    validation: float | None = None
    validated_on: str = ""


@dataclass(frozen=True)
class TableLine:
    """One aggregated row. ``comparison`` is None for the reference row itself, and for missing rows.

    ``choice`` is None for a row that chooses nothing; else all numbers are of the runs with the chosen value.
    """

    name: str
    summary: Summary
    comparison: Comparison | None
    paper: PaperNumbers | None
    failures: tuple[str, ...]
    also: dict[str, Summary]
    paper_also: dict[str, float] = field(default_factory=dict)
    missing: str | None = None
    choice: TableChoice | None = None


def aggregate(config: TableConfig, outcomes: Sequence[Outcome]) -> list[TableLine]:
    """Summarise each row, and test it against the reference row by Welch's t-test.

    Trials that failed are left out of the numbers, with all folds of their repeat, and named in ``failures``, those
    with values that were not chosen too.
    """
    choices = {row.name: choice_of(config, row, outcomes) for row in config.rows}
    repeats = {row.name: _kept(config, row, choices[row.name], outcomes) for row in config.rows}
    values = {name: [_mean(fold.value for fold in folds) for folds in found] for name, found in repeats.items()}
    reference = values.get(config.reference or "", [])
    return [
        TableLine(
            name=row.name,
            summary=summarise(values[row.name]),
            comparison=None if row.missing or row.name == config.reference else welch(values[row.name], reference),
            paper=row.paper,
            failures=tuple(_failure(one) for one in outcomes if one.trial.row == row.name and one.value is None),
            also={
                name: summarise([fmean(fold.also[name] for fold in folds) for folds in repeats[row.name]])
                for name in config.also
            },
            paper_also=row.paper_also,
            missing=row.missing,
            choice=choices[row.name],
        )
        for row in config.rows
    ]


def choice_of(config: TableConfig, row: TableRow, outcomes: Sequence[Outcome]) -> TableChoice | None:
    """Return what a row chooses; None if it chooses nothing."""
    chosen, repeated = config.lists(row)
    if row.missing or not chosen:
        return None
    pretrain, finetune = config.seeds(row)
    num_repeats = prod(map(len, (pretrain or (None,), finetune, settings_of(repeated))))
    tried = []
    for settings in settings_of(chosen):
        repeats = _repeats(config, row, settings, outcomes)
        scores = [_mean(fold.validation for fold in folds) for folds in repeats]
        tried.append(Contender(settings, fmean(scores) if scores else None, len(scores), num_repeats))
    places = dict.fromkeys(
        one.validated_on for one in outcomes if one.trial.row == row.name and one.value is not None
    )
    return choose(tried, config.chosen_by, "the folds held out" if config.num_folds else ", ".join(places))


def _kept(
    config: TableConfig, row: TableRow, choice: TableChoice | None, outcomes: Sequence[Outcome]
) -> list[list[Outcome]]:
    """Return the folds of each repeat that makes a row's numbers."""
    settings = choice.settings if choice else {}
    return [] if settings is None else _repeats(config, row, settings, outcomes)


def _repeats(config: TableConfig, row: TableRow, tried: Settings, outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Return the folds of each of a row's repeats with some values that has all of its folds."""
    repeats: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        trial = outcome.trial
        if trial.row == row.name and trial.tried == tried and outcome.value is not None:
            repeat = json.dumps([trial.pretrain_seed, trial.finetune_seed, trial.repeated])
            repeats.setdefault(repeat, []).append(outcome)
    return [folds for folds in repeats.values() if len(folds) == (config.num_folds or 1)]


def _mean(values: Iterable[float | None]) -> float:
    return fmean(value for value in values if value is not None)


def _failure(outcome: Outcome) -> str:
    settings = worded(outcome.trial.settings)
    return f"{settings}: {outcome.failure}" if settings else outcome.failure
