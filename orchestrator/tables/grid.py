"""Grid: the rows of a table as trials, and trials back to rows. Pure: nothing is run or read here.

A table compares rows (changes to one base experiment), each repeated over seeds: every pretraining seed is
fine-tuned with every fine-tuning seed. A row may give its own seeds; a row with no pretraining seeds (``[]``) is
only fine-tuned, like "from scratch". Under cross-validation, each repeat is fine-tuned on every fold, and its value
is the mean over the folds.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from statistics import fmean
from typing import Any

from pydantic import Field, model_validator

from data.spelling import did_you_mean
from methods.base import FrozenConfig
from orchestrator.config.refusal import FolderName
from orchestrator.results.statistics import Comparison, Summary, summarise, welch
from orchestrator.tables.row import PaperNumbers, Seeds, TableRow


class TableConfig(FrozenConfig):
    """A table file: its experiment, its rows, their repeats, and the comparison between them.

    ``experiment`` is relative to the table's file. ``reference`` names the row that the others are tested against;
    only a table whose rows are all missing has none. ``also`` names further metrics whose mean and deviation are
    shown, such as ``dice/liver``. ``notes`` are printed below the table, for example how the paper's numbers were
    obtained. ``curves`` names metrics of the pretraining that are drawn over its steps, one line per row (its first
    seed); ``convergence`` names metrics of the fine-tuning that are drawn over its epochs, each row with its repeats.
    ``cohorts`` names files, relative to this one, of other scans that the table can be run on (``--cohort``).
    ``concurrent`` is how many trials run at once: by default as many as the cluster holds, or one on a single
    machine. ``num_folds`` cross-validates every row: a repeat is the mean over this many folds of
    ``downstream.train_split``, and it counts once all of them are done.
    """

    name: FolderName
    title: str
    experiment: str
    rows: tuple[TableRow, ...] = Field(min_length=1)
    reference: str | None = None
    metric: str = "score"
    also: tuple[str, ...] = ()
    pretrain_seeds: Seeds = (0,)
    finetune_seeds: Seeds = Field(default=(0,), min_length=1)
    decimals: int = Field(default=3, ge=0, le=6)
    notes: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    convergence: tuple[str, ...] = ()
    cohorts: dict[str, str] = Field(default_factory=dict)
    concurrent: int | None = Field(default=None, gt=0)
    num_folds: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _rows_are_told_apart(self) -> "TableConfig":
        names = [row.name for row in self.rows]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"rows: {names.count(twice[0])} are named {twice[0]!r}; give each its own name")
        for row in self.rows:
            if unknown := sorted(set(row.paper_also) - set(self.also)):
                raise ValueError(
                    f"row {row.name}: paper_also.{unknown[0]} is not one of the metrics under also {list(self.also)}"
                    "; name it there too"
                )
            for kind, seeds in (("pretrain", self.seeds(row)[0]), ("finetune", self.seeds(row)[1])):
                if len(set(seeds)) < len(seeds):
                    raise ValueError(
                        f"row {row.name}: {kind}_seeds {list(seeds)} repeat a seed; the same run would be counted "
                        "twice: give different seeds"
                    )
        return self

    @model_validator(mode="after")
    def _reference_can_be_run(self) -> "TableConfig":
        names, reference = [row.name for row in self.rows], self.reference
        if reference is None:
            if self.runnable:
                raise ValueError(
                    f"reference: missing; name the row that the others are tested against, one of "
                    f"{[row.name for row in self.runnable]}"
                )
            return self
        if reference not in names:
            raise ValueError(
                f"reference {reference!r} is not one of the rows {names}{did_you_mean(reference, names)}"
            )
        if (why := self.rows[names.index(reference)].missing) is not None:
            raise ValueError(
                f"reference {reference!r} is a missing row ({why}), against which nothing can be tested; name a row "
                "that can be run, or where there is none, no reference"
            )
        return self

    @property
    def runnable(self) -> tuple[TableRow, ...]:
        """The rows that are not missing."""
        return tuple(row for row in self.rows if row.missing is None)

    def on_cohort(
        self,
        name: str,
        rows: Mapping[str, Mapping[str, Any]],
        place: Callable[[str], str] = str,
        seeds: Seeds | None = None,
    ) -> "TableConfig":
        """Return the table for another cohort, without the paper's numbers and so without missing rows.

        ``rows`` further changes the rows whose names match: ``2D-*`` stands for every row whose name begins so.
        ``place`` returns the shards that replace the shards that a row names. ``seeds`` replace the table's seeds in
        every row; rows that are not pretrained stay so. Raises ValueError for a name that no row matches, and where
        no row is left.
        """
        names = [row.name for row in self.runnable]
        if not names:
            raise ValueError(f"cohort {name}: all {len(self.rows)} rows are missing; run the table without --cohort")
        if unmatched := [pattern for pattern in rows if not any(_matches(pattern, one) for one in names)]:
            raise ValueError(
                f"cohort {name}: it changes row {unmatched[0]!r}, the table's are {names}"
                f"{did_you_mean(unmatched[0], names)}; name one of them, or several with a *"
            )
        changed = []
        for row in self.runnable:
            overrides = dict(row.overrides)
            for pattern, changes in rows.items():
                overrides |= changes if _matches(pattern, row.name) else {}
            update = {"overrides": placed(overrides, place), "paper": None, "paper_also": {}}
            if seeds is not None:
                update |= {"pretrain_seeds": () if row.pretrain_seeds == () else seeds, "finetune_seeds": seeds}
            changed.append(row.model_copy(update=update))
        title = f"{self.title} (on cohort {name}, not the paper's data)"
        return self.model_copy(update={"name": f"{self.name}-{name}", "title": title, "rows": tuple(changed)})

    def seeds(self, row: TableRow) -> tuple[Seeds, Seeds]:
        """Return a row's pretraining and fine-tuning seeds; if it gives none, the table's."""
        pretrain = self.pretrain_seeds if row.pretrain_seeds is None else row.pretrain_seeds
        return pretrain, row.finetune_seeds or self.finetune_seeds


@dataclass(frozen=True)
class TableTrial:
    """One run of a row; ``pretrain_seed`` is None if nothing is pretrained, ``fold`` without cross-validation."""

    row: str
    overrides: dict[str, Any]
    pretrain_seed: int | None
    finetune_seed: int
    fold: int | None = None
    num_folds: int | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The row's overrides, the seeds and the fold, by dotted names."""
        seeds: dict[str, Any] = {"downstream.seed": self.finetune_seed}
        if self.pretrain_seed is not None:
            seeds["seed"] = self.pretrain_seed
        if self.fold is not None:
            seeds |= {"downstream.num_folds": self.num_folds, "downstream.fold": self.fold}
        return {**self.overrides, **seeds}


@dataclass(frozen=True)
class Outcome:
    """The result of a trial: its value and the values of further metrics, or the reason why it has none.

    ``run`` names the folder of its fine-tuning.
    """

    trial: TableTrial
    value: float | None
    failure: str = ""
    also: dict[str, float] = field(default_factory=dict)
    run: str = ""


@dataclass(frozen=True)
class TableLine:
    """One aggregated row. ``comparison`` is None for the reference row itself, and for missing rows."""

    name: str
    summary: Summary
    comparison: Comparison | None
    paper: PaperNumbers | None
    failures: tuple[str, ...]
    also: dict[str, Summary]
    paper_also: dict[str, float] = field(default_factory=dict)
    missing: str | None = None


def placed(tree: Any, place: Callable[[str], str]) -> Any:
    """Return a config tree, or changes to one by dotted names, whose shards are replaced, at any depth."""
    if isinstance(tree, dict):
        return {
            name: place(value) if name.split(".")[-1] == "shards" else placed(value, place)
            for name, value in tree.items()
        }
    return [placed(one, place) for one in tree] if isinstance(tree, list) else tree


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or fnmatchcase(name, pattern)


def trials_of(config: TableConfig) -> list[TableTrial]:
    """List every run of the table: the first repeat of every row that is not missing, then the second, and so on.

    In this order a table that was stopped half-way already compares all of its rows.
    """
    repeats = []
    for row in config.runnable:
        pretrain, finetune = config.seeds(row)
        folds = range(config.num_folds) if config.num_folds else (None,)
        ways = product(pretrain or (None,), finetune, folds)
        repeats.append([TableTrial(row.name, row.overrides, *way, config.num_folds) for way in ways])
    longest = max((len(trials) for trials in repeats), default=0)
    return [trials[i] for i in range(longest) for trials in repeats if i < len(trials)]


def aggregate(config: TableConfig, outcomes: Sequence[Outcome]) -> list[TableLine]:
    """Summarise each row, and test it against the reference row by Welch's t-test.

    Trials that failed are left out of the numbers, with all folds of their repeat, and named in ``failures``.
    """
    repeats = {row.name: _repeats(config, row, outcomes) for row in config.rows}
    values = {name: [value for value, _ in found] for name, found in repeats.items()}
    reference = values.get(config.reference or "", [])
    return [
        TableLine(
            name=row.name,
            summary=summarise(values[row.name]),
            comparison=None if row.missing or row.name == config.reference else welch(values[row.name], reference),
            paper=row.paper,
            failures=tuple(o.failure for o in outcomes if o.trial.row == row.name and o.value is None),
            also={name: summarise([also[name] for _, also in repeats[row.name]]) for name in config.also},
            paper_also=row.paper_also,
            missing=row.missing,
        )
        for row in config.rows
    ]


def _repeats(config: TableConfig, row: TableRow, outcomes: Sequence[Outcome]) -> list[tuple[float, dict[str, float]]]:
    """Return the value of each of a row's repeats and of its further metrics, as means over all of its folds."""
    repeats: dict[tuple[int | None, int], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.trial.row == row.name and outcome.value is not None:
            seeds = (outcome.trial.pretrain_seed, outcome.trial.finetune_seed)
            repeats.setdefault(seeds, []).append(outcome)
    return [
        (
            fmean(fold.value for fold in folds if fold.value is not None),
            {name: fmean(fold.also[name] for fold in folds) for name in config.also},
        )
        for folds in repeats.values()
        if len(folds) == (config.num_folds or 1)
    ]
