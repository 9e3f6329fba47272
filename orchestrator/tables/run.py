"""Run: run the missing trials of a table, several at once.

Every trial is a pretraining and a fine-tuning with run keys of their own, so a table that is run again, or another
table that shares trials with it, only runs what is missing.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from data.files import check_writable
from data.spelling import did_you_mean
from orchestrator.cluster import connection
from orchestrator.config.computing import Resources
from orchestrator.config.experiment import Experiment
from orchestrator.lock import claimed
from orchestrator.runs import finetune, identity, pool, pretrain
from orchestrator.runs.abandoned import closing_abandoned
from orchestrator.runs.pretrain import PretrainingResult
from orchestrator.runs.run import git_commit
from orchestrator.stop import RunError
from orchestrator.tables.grid import Outcome, TableConfig, TableLine, TableTrial, aggregate
from orchestrator.tables.results import EndedTrial, Results, summary, write
from orchestrator.tables.table import Table, check, described
from orchestrator.terminal import progress
from orchestrator.terminal.phase import Phase
from orchestrator.tracking.store import default_uri
from orchestrator.tracking.tracker import DESCRIPTION, Tracker

Say = Callable[[str], None]


def run(table: Table, say: Say) -> list[TableLine]:
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


def _run_trials(table: Table, concurrent: int, tracker: Tracker, say: Say) -> list[TableLine]:
    results, lines, total = Results(), list[TableLine](), len(table.experiments)
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
            results.ended[place] = (
                ended if isinstance(ended, EndedTrial) else EndedTrial(Outcome(trial, None, str(ended)))
            )
            outcome = results.ended[place].outcome
            how = f"failed: {outcome.failure}"
            if outcome.value is not None:
                how = f"{table.config.metric} {outcome.value:.{table.config.decimals}f}"
            progress.update(phase, number)
            say(f"{number} of {total}: {described(trial)}: {how}")
            lines = aggregate(table.config, results.outcomes)
            write(table, lines, results)
    tracker.summary(summary(lines))
    for path in sorted(table.folder.glob("table.*")) + sorted(table.folder.glob("curve-*.png")):
        tracker.artifact(path)
    return lines


def _run_trial(
    config: TableConfig,
    folder: Path,
    shown: Callable[[], AbstractContextManager[Phase]],
    trial: TableTrial,
    experiment: Experiment,
) -> EndedTrial:
    """Run the missing trainings of a trial; return failures as outcomes; raise ValueError for an unknown metric."""
    with shown():
        return _trained(config, folder, trial, experiment)


def _trained(config: TableConfig, folder: Path, trial: TableTrial, experiment: Experiment) -> EndedTrial:
    pretraining: tuple[Path, list[str]] | None = None
    try:
        pretrained: PretrainingResult | None = None
        if trial.pretrain_seed is not None and experiment.trains:
            pretrained = pretrain.pretrain(experiment, folder, trial.row)
            pretraining = pretrained.folder, [stage.name for stage in experiment.pretraining]
        done = finetune.finetune(experiment, pretrained, None if pretrained else folder, trial.row)
    except (RunError, ValueError) as error:
        # Trials that cannot work were refused before the first trial; a refusal now, as for a lost shard, is a
        # failure.
        return EndedTrial(Outcome(trial, None, " ".join(str(error).split())), pretraining)
    for metric in (config.metric, *config.also):
        if metric not in done.scores:
            raise ValueError(
                f"table {config.name}: metric {metric!r} is not one of the scores {sorted(done.scores)}"
                f"{did_you_mean(metric, done.scores)}; name one of them"
            )
    also = {name: done.scores[name] for name in config.also}
    task = finetune.downstream_of(experiment)
    steps_per_epoch = finetune.labelled_samples(task).train.num_samples / task.budget.batch_size
    return EndedTrial(
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
