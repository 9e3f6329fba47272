"""Run: run the missing trials of a table, several at once.

Every trial is a pretraining and a fine-tuning with run keys of their own, so a table that is run again, or another
table that shares trials with it, only runs what is missing.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from shutil import rmtree
from typing import Any

from data.files import check_writable
from orchestrator import stop
from orchestrator.cluster import connection
from orchestrator.cluster.guard import guarding
from orchestrator.direction import as_logged
from orchestrator.lock import claimed
from orchestrator.results.text import spread
from orchestrator.results.usual import JudgedBy, note
from orchestrator.runs import identity
from orchestrator.runs.abandoned import closing_abandoned
from orchestrator.runs.run import parent
from orchestrator.stop import RunError
from orchestrator.tables.grid import COST, TableConfig
from orchestrator.tables.job import EndedTrial, do, run_trial
from orchestrator.tables.outcome import Outcome, TableLine, aggregate, is_needed
from orchestrator.tables.results import (
    CASES_CSV,
    STATISTICS_CSV,
    Results,
    choices,
    write,
    write_statistics,
)
from orchestrator.tables.table import Table, check, described
from orchestrator.tables.text import answered
from orchestrator.terminal import progress
from orchestrator.tracking.tracker import Tracker

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
        note(table.folder, _judged_by(table))
        concurrent = 1
        if needed := [one.resources_of(training) for _, one in table.experiments for training in one.trainings]:
            stack.enter_context(connection.connected())
            stack.enter_context(guarding())
            concurrent = connection.concurrency(needed, table.config.concurrent)
        stack.enter_context(closing_abandoned(table.base))
        return _run_trials(table, concurrent, stack.enter_context(_tracked(table)), say)


def _run_trials(table: Table, concurrent: int, tracker: Tracker, say: Say) -> list[TableLine]:
    results, lines, total = Results(), aggregate(table.config, []), table.num_trials
    if not total:
        write(table, lines, results)

    def ended(place: int, ending: EndedTrial | Exception) -> None:
        nonlocal lines
        if isinstance(ending, stop.StoppedError):
            return
        trial = table.experiments[place][0]
        if isinstance(ending, RunError):
            ending = EndedTrial(Outcome(trial, None, str(ending)))
        elif isinstance(ending, Exception):
            raise ending
        results.ended[place] = ending
        outcome, number = ending.outcome, len(results.ended)
        how = f"failed: {outcome.failure}"
        if outcome.value is not None:
            how = f"{table.config.metric} {outcome.value:.{table.config.decimals}f}"
        progress.update(phase, number)
        say(f"{number} of {total}: {described(trial)}: {how}")
        lines = aggregate(table.config, results.outcomes)
        write(table, lines, results)

    with progress.phase(f"table {table.config.name}", total, "trial") as phase:
        queue = TrialQueue(table, results)
        if concurrent == 1:
            while (place := queue.take()) is not None:
                ended(place, run_trial(table, place, queue.taken))
        else:
            _run_at_once(queue, concurrent, ended, say)
    write_statistics(table, lines)
    _answer(table.config, lines, tracker)
    if chosen := choices(table.config, lines):
        tracker.tags(chosen)
    for pattern in ("table.*", CASES_CSV, STATISTICS_CSV, "curve-*.png"):
        for path in sorted(table.folder.glob(pattern)):
            tracker.artifact(path)
    return lines


def _answer(config: TableConfig, lines: Sequence[TableLine], tracker: Tracker) -> None:
    """Say on MLflow's pages which row has the best mean, with which score, and whether it is the best."""
    for line in lines:
        if line.alike is not None and line.summary.mean is not None:
            score = spread(line.summary.mean, None, config.decimals)
            tracker.answer(
                f"table: {score} {line.name} ({config.name})",
                line.name,
                f"table {config.name}: {answered(config, lines)}",
            )
            tracker.summary({as_logged(config.metric): line.summary.mean})


class TrialQueue:
    """Hands out the places of a table's trials in their order, without those that nobody needs.

    ``taken`` is how many it has handed out.
    """

    def __init__(self, table: Table, results: Results) -> None:
        self.table, self.results = table, results
        self.taken = 0
        self._waiting = list(range(len(table.experiments)))

    def take(self) -> int | None:
        """Return the next place; None where none is left, and where all that are left wait for a choice."""
        outcomes = self.results.outcomes
        for place in tuple(self._waiting):
            needed = is_needed(self.table.config, self.table.experiments[place][0], outcomes)
            if needed is not None:
                self._waiting.remove(place)
            if needed:
                self.taken += 1
                return place
        return None

    @property
    def left(self) -> int:
        """How many trials wait to be handed out, also those that may turn out not to be needed."""
        return len(self._waiting)


def _run_at_once(queue: TrialQueue, concurrent: int, ended: Callable[[int, Any], None], say: Say) -> None:
    """Run the trials in a pool; raise StoppedError if it was asked to end."""
    from orchestrator.runs import pool  # Tune is dear, and one trial at a time does without

    table, total = queue.table, queue.table.num_trials

    def take() -> tuple[int, str] | pool.Later | None:
        place = queue.take()
        if place is not None:
            return place, str(queue.taken)
        return "later" if queue.left else None

    try:
        pool.run(pool.Workload(table.folder, total, take, partial(do, table), ended, say), concurrent)
    finally:
        rmtree(table.folder / pool.PLACES, ignore_errors=True)
    if stop.requested():
        raise stop.StoppedError(
            f"stopped with {total - queue.taken} of {total} not begun, as asked; the same command goes on from there"
        )


def _judged_by(table: Table) -> JudgedBy:
    config = table.config
    points = tuple((line, float(value), row) for line, rows in table.lines.items() for value, row in rows.items())
    return JudgedBy(
        metric=config.metric,
        also=tuple(name for name in config.also if name != COST),  # a report counts the hours itself
        reference=config.reference,
        over=config.over,
        points=points,
        again=table.command,
    )


def _tracked(table: Table) -> AbstractContextManager[Tracker]:
    """Open the MLflow run that the table's trials are children of."""
    rows = "\n".join(f"- {row.name}{f' (missing: {row.missing})' * bool(row.missing)}" for row in table.config.rows)
    told = f"{table.config.title}\n\nThe artifact `table.md` is the table; its runs are the child runs."
    description = f"{told}\n\nRows:\n{rows}"
    return parent(table.folder, table.base, f"table {table.config.name}", description, {"kind": "table"})
