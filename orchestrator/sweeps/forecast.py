"""Forecast: what a table or a sweep would run and need, with all of it checked (``--dry-run``)."""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table as Printed

from data.shards.index import INDEX
from orchestrator.config.experiment import Experiment
from orchestrator.runs import pretrain
from orchestrator.runs.dry_run import Needs, finetuning_needs, pretraining_needs
from orchestrator.runs.forecast import Forecast, together
from orchestrator.runs.forecast_text import told
from orchestrator.runs.outlook import finetuning, pretraining
from orchestrator.runs.run import RESULT
from orchestrator.runs.work import finetuning_folder
from orchestrator.sweeps import space, sweep
from orchestrator.sweeps.space import Point
from orchestrator.sweeps.sweep import Sweep
from orchestrator.tables import table
from orchestrator.tables.choice import worded
from orchestrator.tables.table import Table
from orchestrator.tables.text import MISSING, why_missing
from orchestrator.tables.trials import TableTrial, expected
from orchestrator.terminal.phase import duration
from orchestrator.terminal.progress import phase


def of_table(asked: Table, measured: bool = False) -> Group:
    """Say of each row how many trials it has and what they take; raise ValueError where one could not run.

    ``measured`` times steps of each training for the forecast of what is missing. A cohort whose scans are not
    written yet has no shards to check against, and only its trials are told.
    """
    absent = _absent_cohort(asked)
    if not absent:
        table.refuse_another(asked)
    printed, forecasts, seen = Printed("row", "trials", "done", "steps", "GPU memory per worker"), [], set[Path]()
    for row in asked.config.rows:
        if row.missing:
            printed.add_row(row.name, MISSING, *("-", "-", "-"))
            continue
        trials = [one for one in asked.experiments if one[0].row == row.name]
        number = len(expected([trial for trial, _ in trials]))
        with phase(f"checking row {row.name}, and estimating what it takes"), table.refusing_row(asked, row):
            likely = [] if absent else _likely(trials)
            cells = ("?", "?", "?") if absent else _row(likely)
            forecasts += [] if absent else [together(_missing(likely, seen, measured), row.name)]
        printed.add_row(row.name, str(number), *cells)
    if absent:
        return Group(printed, absent)
    used = asked.base.trainings if asked.experiments else ()
    idle = filter(None, (asked.base.idle_workers(training) for training in used))
    forecast = told(forecasts, asked.base, "row", _at_once(asked.config.concurrent, asked.base))
    return Group(printed, *forecast, *why_missing(asked.config.rows), f"folder: {asked.folder}", *idle)


def _likely(trials: Sequence[tuple[TableTrial, Experiment]]) -> list[tuple[TableTrial, Experiment]]:
    """Return as many of a row's trials as are run, those that are done among them."""
    if all(trial.decides for trial, _ in trials):
        return list(trials)
    likely = expected([trial for trial, _ in sorted(trials, key=lambda one: not _is_done(*one))])
    return [one for one in trials if one[0] in likely]


def _missing(trials: Sequence[tuple[TableTrial, Experiment]], seen: set[Path], measured: bool) -> list[Forecast]:
    """Return what the trainings take that some trials lack and that are not ``seen`` yet; add their folders to these.

    Trials that differ in seeds and folds take the same.
    """
    found, forecasts = dict[str, list[Forecast]](), list[Forecast]()
    for trial, experiment in trials:
        folders = {"finetune": finetuning_folder(experiment, trial.pretrain_seed is not None)}
        if trial.pretrain_seed is not None and experiment.trains:
            folders["pretrain"] = pretrain.folder_of(experiment)
        for kind, folder in folders.items():
            if folder in seen or (folder / RESULT).exists():
                continue
            seen.add(folder)
            key = f"{kind}, {worded(trial.settings)}"
            if key not in found:
                pretrained = kind == "pretrain"
                found[key] = pretraining(experiment, measured) if pretrained else [finetuning(experiment, measured)]
            forecasts += found[key]
    return forecasts


def _at_once(asked: int | None, experiment: Experiment) -> int:
    """Return how many trials run at once on this machine and gain by it: those that have cores of their own."""
    workers = max(experiment.resources_of(training).workers for training in experiment.trainings)
    return min(asked or 1, max(1, (os.cpu_count() or 1) // workers))


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
    return (finetuning_folder(experiment, trial.pretrain_seed is not None) / RESULT).exists()


def of_sweep(asked: Sweep, measured: bool = False) -> list[RenderableType]:
    """Say what would be searched and what a trial takes; raise ValueError where an end of a field could not run.

    ``measured`` times steps of the trainings at each end.
    """
    lines: list[RenderableType] = [*sweep.describe(asked)]
    points = space.extremes(asked.config.space, asked.base.model_dump(mode="json")) or [{}]
    unlike = {json.dumps(point, sort_keys=True): point for point in points}
    with phase("checking each field at its ends"):
        for point in unlike.values():
            sweep.check_point(asked, point)
    lines.append(f"checked: {len(unlike)} points, with each field at each of its ends")
    what = f"a trial, with each of {len(asked.config.seeds)} seeds" if asked.config.seeds else "a trial"
    if asked.config.search.name == "pbt":
        what = "a member in all its segments"
    lines += [
        f"{what}: {one.name}, {one.steps:,} steps, {one.memory} of GPU memory"
        for one in _trial_needs(asked, asked.experiment(points[0]))
    ]
    return [*lines, *_sweep_forecast(asked, list(unlike.values()), measured)]


def _sweep_forecast(asked: Sweep, points: Sequence[Point], measured: bool) -> list[RenderableType]:
    """Forecast the trials that have not ended, each as the mean of the points, and say what is not in it."""
    left = _num_trials(asked) - _ended_trials(asked.folder)
    search = asked.config.search
    times = 1 / search.segments if search.name == "pbt" else max(1, len(asked.config.seeds))
    trials = [together(_trial(asked, asked.experiment(point), measured), "a trial").times(times) for point in points]
    mean = together([one.times(1 / len(trials)) for one in trials], "a trial")
    per_trial = max(1, trials[0].trainings)
    whole = replace(mean.times(left), name=f"{left} trials", trainings=left * per_trial)
    at_once = _at_once(asked.config.concurrent, asked.base)
    lines = told([whole], asked.base, "sweep", at_once)
    seconds = [one.time.wall_s for one in trials if one.time]
    if len(seconds) < len(trials) or not left:
        return lines
    most = duration(max(seconds) * left / at_once)
    lines.append(f"a trial is the mean of the {len(points)} checked points; if each was the slowest of them: {most}")
    if saved := _pruned_share(asked):
        mean_s = sum(seconds) / len(seconds) * left / at_once
        early = f"{asked.config.scheduler.name} is not counted: it could save up to {duration(mean_s * saved)}"
        lines.append(f"{early}, if it ended all trials but one as early as it may")
    return lines


def _trial(asked: Sweep, experiment: Experiment, measured: bool) -> list[Forecast]:
    found = pretraining(experiment, measured)
    return found + ([finetuning(experiment, measured)] if asked.config.finetuned else [])


def _num_trials(asked: Sweep) -> int:
    """Return how many trials the sweep has; each segment of a population's member is one."""
    search = asked.config.search
    if search.name == "pbt":
        return search.population * search.segments
    return asked.config.trials or len(sweep.check(asked))


def _ended_trials(folder: Path) -> int:
    """Return how many trials of a sweep have ended, by the list in its folder."""
    file = folder / "sweep.csv"
    if not file.exists():
        return 0
    return sum(row["state"] in ("done", "pruned", "failed") for row in csv.DictReader(file.read_text().splitlines()))


def _pruned_share(asked: Sweep) -> float:
    """Return the largest share of all steps of the judged trainings that the scheduler could save."""
    grace = asked.config.scheduler.grace
    if asked.config.scheduler.name == "none" or grace is None:
        return 0.0
    steps = [one.steps for one in _trial_needs(asked, asked.base)]
    judged = sum(steps[-2:] if asked.config.scheduler.metric else steps[-1:])  # no fine-tuning where that was judged
    total = _num_trials(asked)
    return max(0, judged - grace) / sum(steps) * (total - 1) / total


def _trial_needs(asked: Sweep, experiment: Experiment) -> list[Needs]:
    needs = [one for one in pretraining_needs(experiment) if one.steps]
    if asked.config.finetuned:
        needs.append(finetuning_needs(experiment)[0])
    return needs
