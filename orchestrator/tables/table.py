"""Table: read a table's file, resolve the experiment of every trial, and check them before anything runs."""

import json
import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data.spelling import did_you_mean
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import read, resolve
from orchestrator.config.refusal import ConfigError, validated
from orchestrator.config.weights import WeightsFile
from orchestrator.runs import finetune, identity, pretrain
from orchestrator.runs.held_out import check_tested
from orchestrator.runs.labelled import downstream_of
from orchestrator.tables import cohort as cohorts
from orchestrator.tables.choice import worded
from orchestrator.tables.cohort import Cohort
from orchestrator.tables.grid import TableConfig, placed
from orchestrator.tables.over import Lines, lines_over
from orchestrator.tables.row import TableRow
from orchestrator.tables.trials import TableTrial, expected, trials_of
from orchestrator.terminal import progress


@dataclass(frozen=True)
class Table:
    """A table file, the experiment that its rows change, and the experiment of each trial.

    source   the name of the table's file
    command  that runs it, as it was typed
    lines    the rows of each line that is drawn over the field ``over``, by their values there
    """

    config: TableConfig
    base: Experiment
    experiments: tuple[tuple[TableTrial, Experiment], ...]
    source: str
    command: str
    cohort: Cohort | None = None
    lines: Lines = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        """The folder of the table; another base experiment or other shards have another folder."""
        used = {uri for _, one in self.experiments for uri in _shards(one)}
        key = identity.key(self.base, used)
        return Path(self.base.home) / self.base.name / f"table-{self.config.name}-{key}"

    @cached_property
    def num_trials(self) -> int:
        """How many trials are run, of which it may be known later which they are."""
        return len(expected([trial for trial, _ in self.experiments]))

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the table: its file, and the rows that can be run with their changes."""
        return {"file": self.source, "rows": {row.name: row.overrides for row in self.config.runnable}}


def load(path: str | Path, overrides: Sequence[str] = (), cohort: str | None = None) -> Table:
    """Read a table file and resolve the experiment of every trial; overrides change the base experiment.

    With ``cohort``, the table is run on that cohort of its own. Raises ConfigError before anything is run.
    """
    path = Path(path)
    command = shlex.join(["raydiology", "table", path.name, *overrides, *(["--cohort", cohort] if cohort else [])])
    table = validated(TableConfig, read(path), str(path))
    base = read(path.parent / table.experiment)
    chosen = None
    if cohort is not None:
        chosen = _cohort(path, table, cohort)
        home = resolve(base, overrides, str(path)).home
        place = partial(chosen.place, home)
        seeds = chosen.pretrain_seeds, chosen.finetune_seeds
        table = table.on_cohort(cohort, chosen.rows, place, *seeds, chosen.lists).with_classes(chosen.classes)
        table = table.model_copy(update={"concurrent": chosen.concurrent or table.concurrent})
        base = placed(base, place)
        overrides = [*_assigned({**chosen.overrides, "name": f"{base.get('name')}-{cohort}"}), *overrides]
    experiments: list[tuple[TableTrial, Experiment]] = []
    for trial in trials_of(table):
        # The row comes last: overrides on the command line are for all rows, and must not undo a row's own changes.
        changes = [*overrides, *_assigned(trial.changes)]
        experiments.append((trial, resolve(base, changes, f"{path}, row {trial.row}")))
    for row in table.runnable:
        _refuse_same_runs(path, row, [one for one in experiments if one[0].row == row.name])
    resolved = resolve(base, overrides, str(path))
    table = _without_absent_weights(path, table, experiments)
    kept = {row.name for row in table.runnable}
    trials = tuple(one for one in experiments if one[0].row in kept)
    lines = lines_over(str(path), table.over, trials) if table.over else {}
    return Table(table, resolved, trials, path.name, command, chosen, lines)


def _without_absent_weights(
    path: Path, table: TableConfig, experiments: Sequence[tuple[TableTrial, Experiment]]
) -> TableConfig:
    """Return the table with those rows missing that start from a file that is not there."""
    absent: dict[str, str] = {}
    for trial, experiment in experiments:
        starts = [stage.start for stage in experiment.pretraining]
        for file in (Path(start.weights) for start in starts if isinstance(start, WeightsFile)):
            if not file.exists():
                absent[trial.row] = f"{file.name} is not there"
    if table.reference in absent:
        raise ConfigError(
            f"{path}, row {table.reference}: {absent[table.reference]}, so that nothing can be tested against it; "
            "get the file, correct start.weights, or name another reference"
        )
    rows = (row.model_copy(update={"missing": absent.get(row.name, row.missing)}) for row in table.rows)
    return table.model_copy(update={"rows": tuple(rows)})


def _refuse_same_runs(path: Path, row: TableRow, experiments: Sequence[tuple[TableTrial, Experiment]]) -> None:
    """Raise ConfigError where two values of the row's lists give the same run, which would be counted twice."""
    settings: dict[str, str] = {}
    unlike = one_of_each_setting(experiments)
    for trial, experiment in unlike if len(unlike) > 1 else ():
        starts = [stage.start for stage in experiment.pretraining]
        pretrained = "scratch"
        if trial.pretrain_seed is not None and experiment.hands_over:
            pretrained = experiment.pretrain_key(f"{experiment.pretrained_on} {starts}")
        key = experiment.finetune_key(pretrained, downstream_of(experiment).shards)
        other = settings.setdefault(key, worded(trial.settings))
        if other != worded(trial.settings):
            raise ConfigError(
                f"{path}, row {row.name}: {other} and {worded(trial.settings)} are the same run; give values that "
                "differ, or the row its own choose or repeat_over without the field"
            )


def one_of_each_setting(
    experiments: Sequence[tuple[TableTrial, Experiment]],
) -> list[tuple[TableTrial, Experiment]]:
    """Return a row's first trial with each combination of values of its lists."""
    found: dict[str, tuple[TableTrial, Experiment]] = {}
    for trial, experiment in experiments:
        found.setdefault(worded(trial.settings), (trial, experiment))
    return list(found.values())


def _cohort(path: Path, table: TableConfig, name: str) -> Cohort:
    if name not in table.cohorts:
        known = f"it has {', '.join(table.cohorts)}" if table.cohorts else "it has none"
        near = did_you_mean(name, table.cohorts)
        raise ConfigError(f"{path}: no cohort {name!r}; {known}{near}; name one, or run the table without --cohort")
    return cohorts.load(path.parent / table.cohorts[name])


def _shards(experiment: Experiment) -> list[str]:
    return [*experiment.pretrained_on, *([experiment.downstream.shards] if experiment.downstream else [])]


def _assigned(changes: Mapping[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in changes.items()]


def check(table: Table) -> None:
    """Raise ValueError if a row's parts do not fit together, or the folder holds another table."""
    refuse_another(table)
    rows = table.config.runnable
    with progress.phase(f"checking table {table.config.name}", len(rows), "row") as phase:
        for number, row in enumerate(rows):
            progress.update(phase, number, row.name)
            _check_row(table, row)


def _check_row(table: Table, row: TableRow) -> None:
    for trial, experiment in one_of_each_setting([one for one in table.experiments if one[0].row == row.name]):
        with refusing_row(table, row, trial):
            pretrain.check(experiment)
            finetune.check(experiment)
            check_tested(experiment, (table.config.metric, *table.config.also))


@contextmanager
def refusing_row(table: Table, row: TableRow, trial: TableTrial | None = None) -> Generator[None]:
    """Name the row in a ValueError of the body, and a trial's values of fields with lists."""
    try:
        yield
    except ValueError as error:
        settings = f", {worded(trial.settings)}" if trial and trial.settings else ""
        raise ValueError(f"table {table.config.name}, row {row.name}{settings}: {error}") from error


def refuse_another(table: Table) -> None:
    """Raise ValueError if the table's folder holds another file's table, or a table that shares no row with it."""
    found = identity.held(table.folder)
    if found is None:
        return
    mine = table.identity
    kept = [name for name, changes in mine["rows"].items() if found["rows"].get(name) == changes]
    if found["file"] == mine["file"] and (kept or not found["rows"]):
        return
    rows = ", ".join(found["rows"])
    raise ValueError(
        f"table {table.config.name} of {mine['file']}: its folder {table.folder} holds another table, that of "
        f"{found['file']} with rows {rows}, which would be overwritten; give one of them another name: in its file, "
        "or, if the other is not needed, delete the folder: it holds no training"
    )


def described(trial: TableTrial) -> str:
    """Name a trial for people."""
    start = "not pretrained" if trial.pretrain_seed is None else f"pretraining seed {trial.pretrain_seed}"
    settings = f", {worded(trial.settings)}" if trial.settings else ""
    fold = "" if trial.fold is None else f", fold {trial.fold} of {trial.num_folds}"
    return f"{trial.row}{settings}, {start}, fine-tuning seed {trial.finetune_seed}{fold}"
