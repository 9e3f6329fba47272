"""Sweep: search an experiment's fields for their best values, with Ray Tune over trainings that have run keys.

The file gives the space, the search, the objective, and what ends a trial early. Every trial is the experiment with a
point of the space, so that what a table or another sweep has trained is not trained again. All that a sweep remembers
is the Optuna study in its folder, so the same command continues however it ended.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data.files import check_writable
from data.shards.writer import write_atomically
from data.spelling import did_you_mean
from orchestrator import stop
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import read, resolve
from orchestrator.config.refusal import ConfigError, validated
from orchestrator.lock import claimed
from orchestrator.results.usual import JudgedBy, note
from orchestrator.runs import finetune, identity, pool, pretrain
from orchestrator.runs.abandoned import closing_abandoned
from orchestrator.runs.held_out import check_tested
from orchestrator.runs.pool import Workload
from orchestrator.runs.run import parent
from orchestrator.stop import RunError
from orchestrator.sweeps import space, trial
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.sweeps.space import Point, extremes, lookup, params
from orchestrator.sweeps.standings import (
    Standing,
    best,
    comma_separated,
    experiment_file,
    markdown,
    named,
    sentence,
)
from orchestrator.sweeps.study import Ending, Ledger, given, pruner
from orchestrator.sweeps.trial import Trial
from orchestrator.terminal import progress
from orchestrator.terminal.phase import Phase
from orchestrator.tracking.tracker import Tracker, flatten

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, its base experiment, and the tree with overrides that a point changes."""

    config: SweepConfig
    base: Experiment
    tree: dict[str, Any]
    overrides: tuple[str, ...]
    source: str

    @property
    def command(self) -> str:
        """The command that runs the sweep."""
        return shlex.join(["raydiology", "sweep", Path(self.source).name, *self.overrides])

    @cached_property
    def folder(self) -> Path:
        """The folder of the sweep; another space or other shards have another folder."""
        shards = [*self.base.pretrained_on]
        if self.config.objective.of == "finetune":
            shards.append(finetune.downstream_of(self.base).shards)
        key = self.config.key(*identity.settings(self.base, shards))
        return Path(self.base.home) / self.base.name / f"sweep-{self.config.name}-{key}"

    def experiment(self, point: Point) -> Experiment:
        """Return the experiment of a point; raise ConfigError if it is not valid."""
        changes = [f"{field}={json.dumps(value)}" for field, value in point.items()]
        source = f"{self.source}, {space.describe(self.config.space, point)}"
        return resolve(self.tree, [*self.overrides, *changes], source)

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial's outbox to MLflow and of requests to the trial."""
        return pool.place_of(self.folder, number)

    def trial(self, number: int, point: Point, experiment: Experiment | None = None) -> Trial:
        """Return a point as a trial; ``experiment`` replaces the point's own experiment if that is not valid."""
        return Trial(
            number=number,
            point=point,
            experiment=experiment or self.experiment(point),
            objective=self.config.objective,
            folder=self.trial_folder(number),
            label=named(self.config, number, point),
            params=params(self.config.space, point),
        )


def load(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and its experiment; overrides change the experiment of every trial.

    Raises ConfigError if one of them is not valid.
    """
    path = Path(path)
    sweep = validated(SweepConfig, read(path), str(path))
    tree = read(path.parent / sweep.experiment)
    base = resolve(tree, overrides, str(path))
    return Sweep(sweep, base, tree, tuple(overrides), str(path))


def check(sweep: Sweep) -> list[Point]:
    """Return the points that are given rather than searched; raise ValueError if the sweep cannot work."""
    base = sweep.base.model_dump(mode="json")
    for field, knob in sweep.config.space.items():
        for other in knob.when:
            if other not in sweep.config.space and lookup(base, other) is None:
                raise ConfigError(
                    f"{sweep.source}, space, {field}: when names {other}, which neither the space nor the experiment "
                    f"has{did_you_mean(other, [*sweep.config.space, *flatten(base)])}"
                )
    for point in extremes(sweep.config.space, base):
        sweep.experiment(point)
    points = given(sweep.config, base)
    if sweep.config.objective.of == "finetune":
        check_tested(sweep.base, [sweep.config.objective.metric])
        finetune.labelled_samples(finetune.downstream_of(sweep.base))
    if points and sweep.config.search.name != "grid":
        check_point(sweep, points[0])
    return points


def describe(sweep: Sweep) -> list[str]:
    """Describe the search; raise ValueError if it cannot run."""
    points, config_ = check(sweep), sweep.config
    how = {
        "tpe": "Optuna's TPE",
        "gp": "Optuna's Gaussian process",
        "cmaes": "CMA-ES",
        "random": "random points",
        "grid": "every point",
    }[config_.search.name]
    of = {"finetune": "fine-tuning", "pretrain": "pretraining"}[config_.objective.of]
    scheduler = config_.scheduler
    early = "none" if scheduler.name == "none" else f"{scheduler.name}, from step {scheduler.grace} on"
    lines = [f"{field}: {_knob(config_, field)}" for field in config_.space]
    lines += [
        f"search: {how}, {config_.trials or len(points)} trials",
        f"objective: {config_.objective.mode} {config_.objective.metric} of the {of}",
        f"ended early: {early}",
        f"folder: {sweep.folder}" + (" (there; goes on)" if sweep.folder.exists() else ""),
    ]
    return lines + [f"given: {space.describe(config_.space, point)}" for point in points]


def _knob(sweep: SweepConfig, field: str) -> str:
    return json.dumps(sweep.space[field].model_dump(mode="json", exclude_defaults=True))


def check_point(sweep: Sweep, point: Point) -> None:
    """Raise ValueError if a point's encoder, method, task and shards do not fit together."""
    experiment = sweep.experiment(point)
    pretrain.check(experiment)
    if sweep.config.objective.of == "finetune":
        finetune.check(experiment)


def run(sweep: Sweep, say: Say) -> list[Standing]:
    """Run the unfinished trials and return the standing of all; files are rewritten after each trial.

    A trial that fails is named, and the others go on. Raises ValueError before anything is run if the sweep cannot
    work, and StoppedError if it was asked to end; the same sweep continues from there.
    """
    with progress.phase(f"checking sweep {sweep.config.name}"):
        check(sweep)
    check_writable(sweep.base.home, "home")
    with (
        stop.awaited(),
        claimed(sweep.folder, say),
        connection.connected(dashboard=True),
        closing_abandoned(sweep.base),
        _tracked(sweep) as tracker,
    ):
        note(sweep.folder, JudgedBy(metric=sweep.config.objective.metric, again=sweep.command))
        base = sweep.base
        needed = base.trainings if sweep.config.objective.of == "finetune" else base.pretraining
        concurrent = connection.concurrency(map(base.resources_of, needed), sweep.config.concurrent)
        early = pruner(sweep.config.scheduler, trial.curve_of(sweep.trial(0, {}, base)).total_steps)
        ledger = Ledger(sweep.folder, sweep.config, base.model_dump(mode="json"), early)
        ended = _ended(ledger.standings())
        with progress.phase(f"sweep {sweep.config.name}", ledger.total, "trial", ended) as phase:
            pool.run(workload(sweep, ledger, phase, say), concurrent)
        standings = ledger.standings()
        _write(sweep, standings)
        _log(sweep, standings, tracker)
        if stop.requested():
            raise stop.StoppedError(
                f"sweep {sweep.config.name}: stopped with {_ended(standings)} of {ledger.total} trials ended, as "
                "asked; the same command goes on from there"
            )
    return standings


def _ended(standings: Sequence[Standing]) -> int:
    return sum(standing.state in ("done", "pruned", "failed") for standing in standings)


def workload(sweep: Sweep, ledger: Ledger, phase: Phase, say: Say) -> Workload:
    """Return the sweep's unfinished trials as jobs of a pool, which end in its ledger, its files and MLflow."""

    def take() -> tuple[int, str] | None:
        while (taken := ledger.take()) is not None:
            number, point = taken
            try:
                check_point(sweep, point)
            except ValueError as error:
                reason = " ".join(str(error).split())
                ended(number, Ending("failed", reason=reason, impossible=True), told=False)
            else:
                return number, json.dumps(point)
        return None

    def ended(number: int, ending: Ending | Exception, told: bool = True) -> None:
        if isinstance(ending, Exception):
            raised = f"its process failed: {type(ending).__name__}: {ending}"
            ending, told = Ending("failed", reason=str(ending) if isinstance(ending, RunError) else raised), False
        ledger.end(number, ending)
        standings = ledger.standings()
        if not told:
            failed = sweep.trial(number, standings[number].point, sweep.base)
            trial.closed(failed, trial.opened(failed), ending)
        progress.update(phase, _ended(standings))
        say(f"{_ended(standings)} of {ledger.total}: {sentence(sweep.config, standings[number])}")
        _write(sweep, standings)
        if ending.hopeless:
            raise ValueError(ending.reason)

    return Workload(
        folder=sweep.folder,
        total=ledger.total,
        take=take,
        do=lambda number, point: trial.run(sweep.trial(number, json.loads(point))),
        ended=ended,
        say=say,
        reported=lambda number, report: (
            "pruned" if ledger.falls_behind(number, report["step"], report["value"]) else None
        ),
    )


def _tracked(sweep: Sweep) -> AbstractContextManager[Tracker]:
    """Open the MLflow run that the trials are children of."""
    objective = sweep.config.objective
    fields = "\n".join(f"- `{field}`" for field in sweep.config.space)
    description = (
        f"{sweep.config.title}\n\nThe artifact `sweep.md` lists the trials, and `best.yaml` is the experiment of the "
        f"best one. They are the child runs: compare their `{objective.metric}` in parallel coordinates.\n\n"
        f"Searched:\n{fields}"
    )
    tags = {"kind": "sweep", "objective": objective.metric}
    return parent(sweep.folder, sweep.base, f"sweep {sweep.config.name}", description, tags)


def _write(sweep: Sweep, standings: Sequence[Standing]) -> None:
    """Write the standings for people and for programs, and the best trial's experiment."""
    write_atomically(sweep.folder / "sweep.md", markdown(sweep.config, standings))
    write_atomically(sweep.folder / "sweep.csv", comma_separated(sweep.config, standings))
    if winner := best(sweep.config, standings):
        tree = sweep.experiment(winner.point).model_dump(mode="json")
        write_atomically(sweep.folder / "best.yaml", experiment_file(sweep.config, winner, tree))


def _log(sweep: Sweep, standings: Sequence[Standing], tracker: Tracker) -> None:
    if (winner := best(sweep.config, standings)) and winner.value is not None:
        row, point = (
            named(sweep.config, winner.number, winner.point),
            space.describe(sweep.config.space, winner.point),
        )
        name = f"sweep: {winner.value:.4f} {point} ({sweep.config.name})"
        tracker.answer(name, row, f"sweep {sweep.config.name}: best is {sentence(sweep.config, winner)}")
        tracker.summary({f"best/{sweep.config.objective.metric}": winner.value})
    for name in ("sweep.md", "sweep.csv", "best.yaml"):
        if (sweep.folder / name).exists():
            tracker.artifact(sweep.folder / name)
