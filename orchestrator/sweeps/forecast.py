"""Forecast: what a table or a sweep would run and need, with all of it checked (``--dry-run``)."""

import json
from pathlib import Path

from rich.console import Group
from rich.table import Table as Printed

from data.shards.index import INDEX, ShardSet
from orchestrator.config.experiment import Experiment
from orchestrator.runs.course import courses, digest_of
from orchestrator.runs.dry_run import Needs, finetuning_needs, pretraining_needs
from orchestrator.runs.finetune import downstream_of
from orchestrator.runs.run import RESULT
from orchestrator.sweeps import space, sweep
from orchestrator.sweeps.sweep import Sweep
from orchestrator.tables import table
from orchestrator.tables.grid import TableTrial
from orchestrator.tables.table import Table
from orchestrator.tables.text import MISSING, why_missing
from orchestrator.terminal.progress import phase


def of_table(asked: Table) -> Group:
    """Say of each row how many trials it has and what they take; raise ValueError where one could not run.

    A cohort whose scans are not written yet has no shards to check against, and only its trials are told.
    """
    absent = _absent_cohort(asked)
    if not absent:
        table.refuse_another(asked)
    printed = Printed("row", "trials", "done", "steps", "GPU memory per worker")
    for row in asked.config.rows:
        if row.missing:
            printed.add_row(row.name, MISSING, *("-", "-", "-"))
            continue
        trials = [one for one in asked.experiments if one[0].row == row.name]
        with phase(f"checking row {row.name}, and estimating what it takes"), table.refusing_row(asked, row):
            cells = ("?", "?", "?") if absent else _row(trials)
        printed.add_row(row.name, str(len(trials)), *cells)
    if absent:
        return Group(printed, absent)
    used = asked.base.trainings if asked.experiments else ()
    idle = filter(None, (asked.base.idle_workers(training) for training in used))
    return Group(printed, *why_missing(asked.config.rows), f"folder: {asked.folder}", *idle)


def _absent_cohort(asked: Table) -> str:
    if asked.cohort is None:
        return ""
    requests = asked.cohort.requests(asked.cohort.folder(asked.base.home))
    if all((Path(request.out) / INDEX).is_file() for request in requests):
        return ""
    return (
        f"the cohort of {asked.cohort.kind} phantoms is not written yet: the rows are read, but not checked against "
        "its shards; the same command without --dry-run writes it and checks them before anything is trained"
    )


def _row(trials: list[tuple[TableTrial, Experiment]]) -> tuple[str, str, str]:
    """Return how many trials are done, and steps and memory of the first with each value, which is checked."""
    steps, memory = [], []
    for trial, experiment in table.one_of_each_setting(trials):
        pretraining, finetuning = pretraining_needs(experiment), finetuning_needs(experiment)[0]
        needs = [finetuning]
        if trial.pretrain_seed is not None:
            needs = [*(one for one in pretraining if one.steps), finetuning]
        steps.append(" + ".join(f"{one.steps:,}" for one in needs))
        memory += [one.memory for one in needs]
    done = str(sum(_is_done(*one) for one in trials))
    return done, " or ".join(dict.fromkeys(steps)), ", ".join(dict.fromkeys(memory))


def _is_done(trial: TableTrial, experiment: Experiment) -> bool:
    """Tell whether a trial's fine-tuning has ended."""
    pretrained = "scratch"
    if trial.pretrain_seed is not None and experiment.hands_over:
        pretrained = experiment.pretrain_key(digest_of(courses(experiment)))
    key = experiment.finetune_key(pretrained, ShardSet.open(downstream_of(experiment).shards).digest)
    return (Path(experiment.home) / experiment.name / f"finetune-{key}" / RESULT).exists()


def of_sweep(asked: Sweep) -> list[str]:
    """Say what would be searched and what a trial takes; raise ValueError where an end of a field could not run."""
    lines = sweep.describe(asked)
    points = space.extremes(asked.config.space, asked.base.model_dump(mode="json")) or [{}]
    unlike = {json.dumps(point, sort_keys=True): point for point in points}
    with phase("checking each field at its ends"):
        for point in unlike.values():
            sweep.check_point(asked, point)
    lines.append(f"checked: {len(unlike)} points, with each field at each of its ends")
    what = f"a trial, with each of {len(asked.config.seeds)} seeds" if asked.config.seeds else "a trial"
    if asked.config.search.name == "pbt":
        what = "a member in all its segments"
    return lines + [
        f"{what}: {one.name}, {one.steps:,} steps, {one.memory} of GPU memory"
        for one in _trial_needs(asked, asked.experiment(points[0]))
    ]


def _trial_needs(asked: Sweep, experiment: Experiment) -> list[Needs]:
    needs = [one for one in pretraining_needs(experiment) if one.steps]
    if asked.config.finetuned:
        needs.append(finetuning_needs(experiment)[0])
    return needs
