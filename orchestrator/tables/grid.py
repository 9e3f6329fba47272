"""Grid: a table's file as a value: its rows, and what each is repeated over. Pure: nothing is run or read here.

A table compares rows (changes to one base experiment), each repeated over seeds: every pretraining seed is
fine-tuned with every fine-tuning seed. A row may give its own seeds; a row with no pretraining seeds (``[]``) is
only fine-tuned, like "from scratch". Under cross-validation, each repeat is fine-tuned on every fold, and its value
is the mean over the folds. Every repeat is run with every value of ``repeat_over``, each a repeat of its own, and of
``choose``, one of which the row keeps (``choice.py``).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field, model_validator

from data.spelling import did_you_mean
from methods.base import FrozenConfig
from orchestrator.config.refusal import FolderName
from orchestrator.direction import TEST
from orchestrator.tables.choice import (
    Lists,
    placed_lists,
    refuse_choice,
    refuse_overridden,
    refuse_shared,
)
from orchestrator.tables.row import Seeds, TableRow

# What a run costs, beside the scores of its fine-tuning.
COST = "hours"


class TableConfig(FrozenConfig):
    """A table file: its experiment, its rows, their repeats, and the comparison between them.

    ``experiment`` is relative to the table's file. ``reference`` names the row that the others are tested against;
    only a table whose rows are all missing has none. ``also`` names further metrics whose mean and deviation are
    shown, such as ``dice/liver``, and ``hours``: those in which a run's steps were trained, its pretraining with it,
    times the workers. ``notes`` are printed below the table, for example how the paper's numbers were
    obtained. ``curves`` names metrics of the pretraining that are drawn over its steps, one line per row (its first
    seed); ``convergence`` names metrics of the fine-tuning that are drawn over its epochs, each row with its repeats.
    ``over`` names a field of numbers, such as ``downstream.label_fraction``: the table's metric is drawn over it, one
    line for all rows that differ in nothing else.
    ``cohorts`` names files, relative to this one, of other scans that the table can be run on (``--cohort``).
    ``concurrent`` is how many trials run at once: by default as many as the cluster holds, or one on a single
    machine. ``num_folds`` cross-validates every row: a repeat is the mean over this many folds of
    ``downstream.train_split``, and it counts once all of them are done. ``choose`` lists values of fields, of which
    each row keeps those that score best on the validation split; ``choose_repeats`` is how many repeats of a row try
    all of them, by default each, and the others run with those that it keeps. ``repeat_over`` lists values that are
    repeats, as seeds are.
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
    over: str | None = None
    cohorts: dict[str, str] = Field(default_factory=dict)
    concurrent: int | None = Field(default=None, gt=0)
    num_folds: int | None = Field(default=None, ge=2)
    choose: Lists = Field(default_factory=dict)
    choose_repeats: int | None = Field(default=None, gt=0)
    repeat_over: Lists = Field(default_factory=dict)

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

    @model_validator(mode="after")
    def _lists_and_rows_fit(self) -> "TableConfig":
        self.check_lists()
        return self

    def check_lists(self) -> None:
        """Raise ValueError where a row also sets a field that it chooses or repeats over, or cannot choose."""
        for row in self.runnable:
            chosen, repeated = self.lists(row)
            try:
                refuse_shared(chosen, repeated)
                refuse_overridden("choose", chosen, row.overrides)
                refuse_overridden("repeat_over", repeated, row.overrides)
                if chosen:
                    refuse_choice(self.chosen_by)
            except ValueError as error:
                raise ValueError(f"row {row.name}: {error}") from None

    @property
    def chosen_by(self) -> str:
        """The metric by which ``choose`` decides: the table's, as the validation measures it."""
        return self.metric.removeprefix(TEST)

    @property
    def runnable(self) -> tuple[TableRow, ...]:
        """The rows that are not missing."""
        return tuple(row for row in self.rows if row.missing is None)

    def on_cohort(
        self,
        name: str,
        rows: Mapping[str, Mapping[str, Any]],
        place: Callable[[str], str] = str,
        pretrain_seeds: Seeds | None = None,
        finetune_seeds: Seeds | None = None,
        lists: Mapping[str, Lists] | None = None,
    ) -> "TableConfig":
        """Return the table for another cohort, without the paper's numbers and so without missing rows.

        ``rows`` further changes the rows whose names match: ``2D-*`` stands for every row whose name begins so.
        ``place`` returns the shards that replace the shards that a row names. Seeds replace the table's and the rows'
        own; rows that are not pretrained stay so. ``lists`` replace ``choose`` and ``repeat_over`` in the same
        way. Raises ValueError for a name that no row matches, and where no row is left.
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
            if pretrain_seeds is not None and row.pretrain_seeds != ():
                update["pretrain_seeds"] = pretrain_seeds
            if finetune_seeds is not None:
                update["finetune_seeds"] = finetune_seeds
            for kind, own in (("choose", row.choose), ("repeat_over", row.repeat_over)):
                update[kind] = None if own and lists and kind in lists else own and placed_lists(own, place)
            changed.append(row.model_copy(update=update))
        update = {
            "name": f"{self.name}-{name}",
            "title": f"{self.title} (on cohort {name}, not the paper's data)",
            "rows": tuple(changed),
            "choose": placed_lists(self.choose, place),
            "repeat_over": placed_lists(self.repeat_over, place),
            **(lists or {}),
        }
        table = self.model_copy(update=update)
        table.check_lists()
        return table

    def with_classes(self, names: Mapping[str, str]) -> "TableConfig":
        """Return the table with other names of classes or labels in its metrics: ``{"malignant": "nodule"}``."""

        def renamed(metric: str) -> str:
            return "/".join(names.get(part, part) for part in metric.split("/"))

        return self.model_copy(update={"metric": renamed(self.metric), "also": tuple(map(renamed, self.also))})

    def lists(self, row: TableRow) -> tuple[Lists, Lists]:
        """Return the values that a row chooses from and those that it repeats over; if it gives none, the table's."""
        return (
            self.choose if row.choose is None else row.choose,
            self.repeat_over if row.repeat_over is None else row.repeat_over,
        )

    def seeds(self, row: TableRow) -> tuple[Seeds, Seeds]:
        """Return a row's pretraining and fine-tuning seeds; if it gives none, the table's."""
        pretrain = self.pretrain_seeds if row.pretrain_seeds is None else row.pretrain_seeds
        return pretrain, row.finetune_seeds or self.finetune_seeds


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
