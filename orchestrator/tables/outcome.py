"""Outcome: how the trials of a table ended, and trials back to rows. Pure: nothing is run or read here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from statistics import fmean

from orchestrator.direction import direction_of
from orchestrator.judging.case_scores import CaseScores
from orchestrator.results.claims import RowScores, against, best_of, corrected, joined
from orchestrator.results.statistics import Comparison, Summary, summarise
from orchestrator.tables.choice import Contender, Settings, TableChoice, choose, settings_of, worded
from orchestrator.tables.grid import TableConfig
from orchestrator.tables.row import PaperNumbers, TableRow
from orchestrator.tables.trials import TableTrial, trials_of


@dataclass(frozen=True)
class Outcome:
    """The result of a trial: its value and the values of further metrics, or the reason why it has none.

    ``run`` names the folder of its fine-tuning, and ``patients`` has the score of each patient behind its value,
    where these are known. Of a trial that tries a value, ``validation`` is the score by which the value may be
    chosen, and ``validated_on`` names the samples.
    """

    trial: TableTrial
    value: float | None
    failure: str = ""
    also: dict[str, float] = field(default_factory=dict)
    run: str = ""
    patients: CaseScores | None = None
    validation: float | None = None
    validated_on: str = ""


@dataclass(frozen=True)
class TableLine:
    """One aggregated row. ``comparison`` is None for the reference row itself, and for missing rows.

    ``alike`` is None but for the row with the best mean: there it names the rows that cannot be told from it.
    ``choice`` is None for a row that chooses nothing; else all numbers are of the runs with the chosen value.
    """

    name: str
    scores: RowScores
    summary: Summary
    comparison: Comparison | None
    paper: PaperNumbers | None
    failures: tuple[str, ...]
    also: dict[str, Summary]
    paper_also: dict[str, float] = field(default_factory=dict)
    missing: str | None = None
    choice: TableChoice | None = None
    alike: tuple[str, ...] | None = None


def aggregate(config: TableConfig, outcomes: Sequence[Outcome]) -> list[TableLine]:
    """Summarise each row, test it against the reference row, and find the row that is better than all others.

    Trials that failed are left out of the numbers, with all folds of their repeat, and named in ``failures``, those
    with values that were not chosen too.
    """
    choices = {row.name: choice_of(config, row, outcomes) for row in config.rows}
    repeats = {row.name: _kept(config, row, choices[row.name], outcomes) for row in config.rows}
    scores = {name: _scores(found) for name, found in repeats.items()}
    compared = _compared(config, scores)
    best = best_of(list(scores.values()), direction_of(config.metric))
    alike = {config.rows[best.row].name: tuple(config.rows[place].name for place in best.alike)} if best else {}
    return [
        TableLine(
            name=row.name,
            scores=scores[row.name],
            summary=summarise(scores[row.name].values),
            comparison=compared.get(row.name),
            paper=row.paper,
            failures=tuple(_failure(one) for one in outcomes if one.trial.row == row.name and one.value is None),
            also={
                name: summarise([fmean(fold.also[name] for fold in folds) for folds in repeats[row.name]])
                for name in config.also
            },
            paper_also=row.paper_also,
            missing=row.missing,
            choice=choices[row.name],
            alike=alike.get(row.name),
        )
        for row in config.rows
    ]


def _compared(config: TableConfig, scores: Mapping[str, RowScores]) -> dict[str, Comparison | None]:
    """Compare each row that can be run with the reference."""
    reference = scores.get(config.reference or "", RowScores(()))
    names = [row.name for row in config.runnable if row.name != config.reference]
    return corrected({name: against(scores[name], reference) for name in names})


def _scores(repeats: Sequence[Sequence[Outcome]]) -> RowScores:
    """Return a row's repeats, each the mean over its folds, with the patients of all of its folds."""
    values = [_mean(fold.value for fold in folds) for folds in repeats]
    return RowScores(values, [joined([fold.patients for fold in folds]) for folds in repeats])


def choice_of(config: TableConfig, row: TableRow, outcomes: Sequence[Outcome]) -> TableChoice | None:
    """Return what a row chooses; None if it chooses nothing."""
    chosen, repeated = config.lists(row)
    if row.missing or not chosen:
        return None
    pretrain, finetune = config.seeds(row)
    num_repeats = prod(map(len, (pretrain or (None,), finetune, settings_of(repeated))))
    num_repeats = min(num_repeats, config.choose_repeats or num_repeats)
    tried = []
    deciding = [one for one in outcomes if one.trial.decides]
    for settings in settings_of(chosen):
        repeats = _repeats(config, row, settings, deciding)
        scores = [_mean(fold.validation for fold in folds) for folds in repeats]
        tried.append(Contender(settings, fmean(scores) if scores else None, len(scores), num_repeats))
    places = dict.fromkeys(
        one.validated_on for one in outcomes if one.trial.row == row.name and one.value is not None
    )
    return choose(tried, config.chosen_by, "the folds held out" if config.num_folds else ", ".join(places))


def is_needed(config: TableConfig, trial: TableTrial, outcomes: Sequence[Outcome]) -> bool | None:
    """Tell whether a trial is run: one that does not decide, only with what its row has chosen; None before that."""
    if trial.decides:
        return True
    (row,) = (row for row in config.rows if row.name == trial.row)
    ended = sum(one.trial.decides for one in outcomes if one.trial.row == row.name)
    if ended < sum(one.decides for one in trials_of(config) if one.row == row.name):
        return None
    choice = choice_of(config, row, outcomes)
    return choice is not None and choice.settings == trial.tried


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
            repeats.setdefault(str(trial.repeat), []).append(outcome)
    return [folds for folds in repeats.values() if len(folds) == (config.num_folds or 1)]


def _mean(values: Iterable[float | None]) -> float:
    return fmean(value for value in values if value is not None)


def _failure(outcome: Outcome) -> str:
    settings = worded(outcome.trial.settings)
    return f"{settings}: {outcome.failure}" if settings else outcome.failure
