"""Trials: the runs of a table, in their order. Pure: nothing is run or read here.

Where only the first repeats of a row try all values of its ``choose``, each other repeat is listed with each value
too, and is run with the one that the row has chosen by then.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from orchestrator.tables.choice import Settings, settings_of
from orchestrator.tables.grid import TableConfig


@dataclass(frozen=True)
class TableTrial:
    """One run of a row; ``pretrain_seed`` is None if nothing is pretrained, ``fold`` without cross-validation.

    ``repeated`` holds its values of the fields that are repeated over, ``tried`` of those that are chosen. A trial
    that does not ``decide`` is run only with what its row has chosen.
    """

    row: str
    overrides: dict[str, Any]
    pretrain_seed: int | None
    finetune_seed: int
    fold: int | None = None
    num_folds: int | None = None
    repeated: Settings = field(default_factory=dict)
    tried: Settings = field(default_factory=dict)
    decides: bool = True

    @property
    def repeat(self) -> tuple[Any, ...]:
        """The row and the repeat that it belongs to."""
        return self.row, self.pretrain_seed, self.finetune_seed, self.repeated

    @property
    def settings(self) -> Settings:
        """Its values of all fields with lists."""
        return {**self.repeated, **self.tried}

    @property
    def changes(self) -> dict[str, Any]:
        """The row's overrides, its values of fields with lists, the seeds and the fold, by dotted names."""
        seeds: dict[str, Any] = {"downstream.seed": self.finetune_seed}
        if self.pretrain_seed is not None:
            seeds["seed"] = self.pretrain_seed
        if self.fold is not None:
            seeds |= {"downstream.num_folds": self.num_folds, "downstream.fold": self.fold}
        return {**self.overrides, **self.settings, **seeds}


def trials_of(config: TableConfig) -> list[TableTrial]:
    """List every run of the table: the first repeat of every row that is not missing, then the second, and so on.

    In this order a table that was stopped half-way already compares all of its rows.
    """
    repeats = []
    for row in config.runnable:
        pretrain, finetune = config.seeds(row)
        chosen, repeated = config.lists(row)
        folds = range(config.num_folds) if config.num_folds else (None,)
        each = product(pretrain or (None,), finetune, settings_of(repeated))
        repeats.append(
            [
                TableTrial(
                    *(row.name, row.overrides, start, seed, fold, config.num_folds, again, tried),
                    decides=not chosen or number < (config.choose_repeats or number + 1),
                )
                for number, (start, seed, again) in enumerate(each)
                for tried, fold in product(settings_of(chosen), folds)
            ]
        )
    longest = max((len(trials) for trials in repeats), default=0)
    return [trials[i] for i in range(longest) for trials in repeats if i < len(trials)]


def expected(trials: Sequence[TableTrial]) -> list[TableTrial]:
    """Return as many trials as are run: of a repeat that does not decide, those with its first value."""
    chosen: dict[Any, Settings] = {}
    return [one for one in trials if one.decides or chosen.setdefault(str(one.repeat), one.tried) == one.tried]
