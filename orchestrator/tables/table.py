"""Table: run the missing trials of a table, and put its rows side by side.

Every trial is a pretraining and a fine-tuning with run keys of their own, so a table that is run again, or another
table that shares trials with it, only runs what is missing.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data.files import check_writable
from data.shards.writer import write_atomically
from data.spelling import did_you_mean
from methods import METHODS
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import read, resolve
from orchestrator.config.parts import Resources
from orchestrator.config.refusal import ConfigError, validated
from orchestrator.history import steps
from orchestrator.lock import claimed
from orchestrator.results.charts import Curve, draw_bands, draw_curves
from orchestrator.results.run_cards import TEST
from orchestrator.runs import finetune, identity, pool, pretrain
from orchestrator.runs.abandoned import closing_abandoned
from orchestrator.runs.pretrain import Pretrained
from orchestrator.runs.run import git_commit
from orchestrator.stop import RunError
from orchestrator.tables import cohort as cohorts
from orchestrator.tables.cohort import Cohort
from orchestrator.tables.grid import Line, Outcome, Row, TableConfig, Trial, aggregate, trials_of
from orchestrator.tables.text import comma_separated, markdown
from orchestrator.terminal import progress
from orchestrator.terminal.progress import Phase
from orchestrator.tracking.store import default_uri
from orchestrator.tracking.tracker import DESCRIPTION, Tracker, plain

Say = Callable[[str], None]


@dataclass(frozen=True)
class Table:
    """A table file, the experiment that its rows change, and the experiment of each trial.

    source  the name of the table's file
    """

    config: TableConfig
    base: Experiment
    experiments: tuple[tuple[Trial, Experiment], ...]
    source: str
    cohort: Cohort | None = None

    @cached_property
    def folder(self) -> Path:
        """The folder of the table; another base experiment or other shards have another folder."""
        used = {uri for _, one in self.experiments for uri in _shards(one)}
        key = identity.key(self.base, used)
        return Path(self.base.home) / self.base.name / f"table-{self.config.name}-{key}"

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the table: its file, and its rows with their changes."""
        return {"file": self.source, "rows": {row.name: row.overrides for row in self.config.rows}}


@dataclass(frozen=True)
class Ended:
    """A trial that ended.

    pretraining   its folder and its stages, if it is pretrained
    finetuning    its folder and the steps of an epoch, if it did not fail
    """

    outcome: Outcome
    pretraining: tuple[Path, list[str]] | None = None
    finetuning: tuple[Path, float] | None = None


@dataclass
class Results:
    """The results of a table's trials so far, by their positions in the table."""

    ended: dict[int, Ended] = field(default_factory=dict)

    @property
    def outcomes(self) -> list[Outcome]:
        """How the trials ended, in the table's order."""
        return [one.outcome for one in self._in_order()]

    @property
    def pretrainings(self) -> dict[str, tuple[Path, list[str]]]:
        """The first pretraining of each row."""
        found: dict[str, tuple[Path, list[str]]] = {}
        for one in self._in_order():
            if one.pretraining:
                found.setdefault(one.outcome.trial.row, one.pretraining)
        return found

    @property
    def finetunings(self) -> dict[str, list[tuple[Path, float]]]:
        """The fine-tunings of each row."""
        found: dict[str, list[tuple[Path, float]]] = {}
        for one in self._in_order():
            if one.finetuning:
                found.setdefault(one.outcome.trial.row, []).append(one.finetuning)
        return found

    def _in_order(self) -> list[Ended]:
        return [self.ended[place] for place in sorted(self.ended)]

    def convergence(self, row: str, metric: str) -> list[Curve]:
        """Return a metric of each of a row's fine-tunings over its epochs."""
        curves = []
        for folder, steps_per_epoch in self.finetunings.get(row, []):
            found = [entry for entry in steps(folder, finetune.STAGE) if metric in entry]
            places = [(entry["step"] + 1) / steps_per_epoch for entry in found]
            curves.append((places, [float(entry[metric]) for entry in found]))
        return curves


def load(path: str | Path, overrides: Sequence[str] = (), cohort: str | None = None) -> Table:
    """Read a table file and resolve the experiment of every trial; overrides change the base experiment.

    With ``cohort``, the table is run on that cohort of its own. Raises ConfigError before anything is run.
    """
    path = Path(path)
    table = validated(TableConfig, read(path), str(path))
    base = read(path.parent / table.experiment)
    chosen = None
    if cohort is not None:
        chosen = _cohort(path, table, cohort)
        home = resolve(base, overrides, str(path)).home
        table = table.on_cohort(cohort, chosen.rows, partial(chosen.place, home), chosen.seeds)
        overrides = [*_assigned({**chosen.changes(home), "name": f"{base.get('name')}-{cohort}"}), *overrides]
    experiments = []
    for trial in trials_of(table):
        # The row comes last: overrides on the command line are for all rows, and must not undo a row's own changes.
        changes = [*overrides, *_assigned(trial.changes)]
        experiments.append((trial, resolve(base, changes, f"{path}, row {trial.row}")))
    resolved = resolve(base, overrides, str(path))
    return Table(table, resolved, tuple(experiments), path.name, chosen)


def _cohort(path: Path, table: TableConfig, name: str) -> Cohort:
    if name not in table.cohorts:
        known = f"it has {', '.join(table.cohorts)}" if table.cohorts else "it has none"
        near = did_you_mean(name, table.cohorts)
        raise ConfigError(f"{path}: no cohort {name!r}; {known}{near}; name one, or run the table without --cohort")
    return cohorts.load(path.parent / table.cohorts[name])


def _shards(experiment: Experiment) -> list[str]:
    pretrained_on = [experiment.data_of(stage).shards for stage in experiment.pretraining]
    return [*pretrained_on, *([experiment.downstream.shards] if experiment.downstream else [])]


def _assigned(changes: Mapping[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in changes.items()]


def run(table: Table, say: Say) -> list[Line]:
    """Run the trials that are not done yet and return the rows; the table is rewritten after each trial.

    A trial that fails is named in its row, and the others go on. Raises ValueError before anything is run if a row
    cannot work at all.
    """
    with ExitStack() as stack:
        if table.cohort is not None:
            stack.enter_context(connection.connected())
            with progress.phase(f"preparing the cohort of {table.cohort.kind} phantoms"):
                table.cohort.prepare(table.base.home)
        check(table)
        check_writable(table.base.home, "home")
        stack.enter_context(claimed(table.folder, say))
        identity.mark(table.folder, table.identity)
        stack.enter_context(connection.connected())
        stack.enter_context(closing_abandoned(table.base))
        needed = _resources(table)
        for resources in needed:
            connection.preflight(resources)
        concurrent = min(connection.concurrency(resources, table.config.concurrent) for resources in needed)
        return _run_trials(table, concurrent, stack.enter_context(_tracked(table)), say)


def _resources(table: Table) -> list[Resources]:
    """Return the resources of the trials' trainings."""
    experiments = [experiment for _, experiment in table.experiments]
    return [one.resources_of(training) for one in experiments for training in one.trainings]


def _run_trials(table: Table, concurrent: int, tracker: Tracker, say: Say) -> list[Line]:
    results, lines, total = Results(), list[Line](), len(table.experiments)
    rows = [row.name for row in table.config.rows]
    jobs = []
    for number, (trial, experiment) in enumerate(table.experiments, 1):
        place = f"trial {number} of {total}"
        shown = partial(
            progress.phase,
            f"{place}, row {rows.index(trial.row) + 1} of {len(rows)}: {described(trial)}",
            short=f"{place}, {trial.row}",
        )
        jobs.append(partial(_run_trial, table.config, table.folder, shown, trial, experiment))
    with progress.phase(f"table {table.config.name}", total, "trial") as phase:
        for number, (place, ended) in enumerate(pool.results(jobs, concurrent, table.folder, say), 1):
            trial = table.experiments[place][0]
            results.ended[place] = ended if isinstance(ended, Ended) else Ended(Outcome(trial, None, str(ended)))
            outcome = results.ended[place].outcome
            how = f"failed: {outcome.failure}"
            if outcome.value is not None:
                how = f"{table.config.metric} {outcome.value:.{table.config.decimals}f}"
            progress.update(phase, number)
            say(f"{number} of {total}: {described(trial)}: {how}")
            lines = aggregate(table.config, results.outcomes)
            _write(table, lines, results)
    tracker.summary(_summary(lines))
    for path in sorted(table.folder.glob("table.*")) + sorted(table.folder.glob("curve-*.png")):
        tracker.artifact(path)
    return lines


def check(table: Table) -> None:
    """Raise ValueError if a row's parts do not fit together, or the folder holds another table."""
    refuse_another(table)
    rows = table.config.rows
    with progress.phase(f"checking table {table.config.name}", len(rows), "row") as phase:
        for number, row in enumerate(rows):
            progress.update(phase, number, row.name)
            _check_row(table, row)


def _check_row(table: Table, row: Row) -> None:
    experiment = next(experiment for trial, experiment in table.experiments if trial.row == row.name)
    with refusing_row(table, row):
        pretrain.check(experiment)
        finetune.check(experiment)
        tested = [name for name in (table.config.metric, *table.config.also) if name.startswith(TEST)]
        if tested and finetune.downstream_of(experiment).test_split is None:
            raise ValueError(
                f"metric {tested[0]!r}: nothing is tested; set downstream.test_split, or name a metric of the "
                "validation"
            )


@contextmanager
def refusing_row(table: Table, row: Row) -> Iterator[None]:
    """Name the row in a ValueError of the body."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"table {table.config.name}, row {row.name}: {error}") from error


def refuse_another(table: Table) -> None:
    """Raise ValueError if the table's folder holds another file's table, or a table that shares no row with it."""
    found = identity.held(table.folder)
    if found is None:
        return
    mine = table.identity
    kept = [name for name, changes in mine["rows"].items() if found["rows"].get(name) == changes]
    if found["file"] == mine["file"] and kept:
        return
    rows = ", ".join(found["rows"])
    raise ValueError(
        f"table {table.config.name} of {mine['file']}: its folder {table.folder} holds another table, that of "
        f"{found['file']} with rows {rows}, which would be overwritten; give one of them another name: in its file, "
        "or, if the other is not needed, delete the folder: it holds no training"
    )


def described(trial: Trial) -> str:
    """Name a trial for people."""
    start = "not pretrained" if trial.pretrain_seed is None else f"pretraining seed {trial.pretrain_seed}"
    fold = "" if trial.fold is None else f", fold {trial.fold} of {trial.num_folds}"
    return f"{trial.row}, {start}, fine-tuning seed {trial.finetune_seed}{fold}"


def _run_trial(
    config: TableConfig,
    folder: Path,
    shown: Callable[[], AbstractContextManager[Phase]],
    trial: Trial,
    experiment: Experiment,
) -> Ended:
    """Run the missing trainings of a trial; return failures as outcomes; raise ValueError for an unknown metric."""
    with shown():
        return _trained(config, folder, trial, experiment)


def _trained(config: TableConfig, folder: Path, trial: Trial, experiment: Experiment) -> Ended:
    pretraining: tuple[Path, list[str]] | None = None
    try:
        pretrained: Pretrained | None = None
        if trial.pretrain_seed is not None and any(METHODS[s.method.name].trains for s in experiment.pretraining):
            pretrained = pretrain.pretrain(experiment, folder, trial.row)
            pretraining = pretrained.folder, [stage.name for stage in experiment.pretraining]
        done = finetune.finetune(experiment, pretrained, None if pretrained else folder, trial.row)
    except (RunError, ValueError) as error:
        # Trials that cannot work were refused before the first trial; a refusal now, as for a lost shard, is a
        # failure.
        return Ended(Outcome(trial, None, " ".join(str(error).split())), pretraining)
    for metric in (config.metric, *config.also):
        if metric not in done.scores:
            raise ValueError(
                f"table {config.name}: metric {metric!r} is not one of the scores {sorted(done.scores)}"
                f"{did_you_mean(metric, done.scores)}; name one of them"
            )
    also = {name: done.scores[name] for name in config.also}
    task = finetune.downstream_of(experiment)
    steps_per_epoch = finetune.labelled_samples(task).train.num_samples / task.budget.batch_size
    return Ended(
        Outcome(trial, done.scores[config.metric], also=also, run=done.folder.name),
        pretraining,
        (done.folder, steps_per_epoch),
    )


@contextmanager
def _tracked(table: Table) -> Iterator[Tracker]:
    """Open the MLflow run that the table's trials are children of."""
    experiment = table.base
    tracker = Tracker(table.folder, experiment.tracking.uri or default_uri(Path(experiment.home)))
    rows = "\n".join(f"- {row.name}" for row in table.config.rows)
    description = f"The artifact `table.md` is the table; its runs are the child runs.\n\nRows:\n{rows}"
    tags = {"kind": "table", "git_commit": git_commit(), DESCRIPTION: description}
    tracker.start(experiment.name, table.config.title, table.folder.name, tags)
    tracker.flush(force=True)
    try:
        with tracker.closing():
            yield tracker
    finally:
        tracker.flush(force=True)


def _write(table: Table, lines: list[Line], results: Results) -> None:
    """Write Markdown, CSV and curves."""
    write_atomically(table.folder / "table.md", markdown(table.config, lines))
    write_atomically(table.folder / "table.csv", comma_separated(table.config, results.outcomes))
    for metric in table.config.curves:
        curves = {row: _curve(*place, metric) for row, place in results.pretrainings.items()}
        if any(len(x) for x, _ in curves.values()):
            png = draw_curves(curves, f"{metric} while pretraining", "step", metric)
            write_atomically(table.folder / f"curve-{plain(metric)}.png", png)
    for metric in table.config.convergence:
        repeats = {row: results.convergence(row, metric) for row in results.finetunings}
        png = draw_bands(repeats, f"{metric} while fine-tuning", "epoch", metric)
        write_atomically(table.folder / f"curve-finetune-{plain(metric)}.png", png)


def _curve(folder: Path, stages: list[str], metric: str) -> Curve:
    """Return a metric of a pretraining over its steps, all stages one after the other."""
    places: list[float] = []
    values: list[float] = []
    before = 0
    for stage in stages:
        entries = steps(folder, stage)
        found = [entry for entry in entries if metric in entry]
        places += [before + entry["step"] + 1 for entry in found]
        values += [float(entry[metric]) for entry in found]
        before += len(entries)
    return places, values


def _summary(lines: list[Line]) -> dict[str, float]:
    return {f"mean/{plain(line.name)}": line.summary.mean for line in lines if line.summary.mean is not None}
