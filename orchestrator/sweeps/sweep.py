"""Sweep: search an experiment's fields for their best values, with Ray Tune over trainings that have run keys.

The file gives the space, the search, the objective, and what ends a trial early. Every trial is the experiment with a
point of the space, so that what a table or another sweep has trained is not trained again. All that a sweep remembers
is the Optuna study in its folder, so the same command continues however it ended.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data.files import check_writable
from data.spelling import did_you_mean
from orchestrator import stop
from orchestrator.cluster import connection
from orchestrator.cluster.guard import guarding
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import read, resolve
from orchestrator.config.refusal import ConfigError, validated
from orchestrator.lock import claimed
from orchestrator.results.usual import JudgedBy, note
from orchestrator.runs import finetune, identity, pool, pretrain
from orchestrator.runs.abandoned import closing_abandoned
from orchestrator.runs.course import Course
from orchestrator.runs.held_out import check_tested
from orchestrator.runs.pool import Later, Workload
from orchestrator.runs.run import parent
from orchestrator.runs.segment import Segment
from orchestrator.stop import RunError
from orchestrator.sweeps import records, space, trial
from orchestrator.sweeps.exchange import check_base, check_same_state, ends_of
from orchestrator.sweeps.settings import Objective, SweepConfig
from orchestrator.sweeps.space import Point, extremes, lookup, params
from orchestrator.sweeps.standings import Standing, named, sentence
from orchestrator.sweeps.study import Ending, Ledger, given, pruner
from orchestrator.sweeps.trial import Trial
from orchestrator.sweeps.watching import check_judged, watched
from orchestrator.sweeps.words import described, told
from orchestrator.terminal import progress
from orchestrator.terminal.phase import Phase
from orchestrator.tracking.tracker import flatten

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
        if self.config.finetuned:
            shards.append(finetune.downstream_of(self.base).shards)
        key = self.config.key(*identity.settings(self.base, shards))
        return Path(self.base.home) / self.base.name / f"sweep-{self.config.name}-{key}"

    def experiment(self, point: Point, seed: int | None = None) -> Experiment:
        """Return the experiment of a point, with a seed if one is given; raise ConfigError if it is not valid."""
        changes = [f"{field}={json.dumps(value)}" for field, value in point.items()]
        if seed is not None:
            changes += [f"seed={seed}", *([f"downstream.seed={seed}"] if self.base.downstream else [])]
        source = f"{self.source}, {space.describe(self.config.space, point)}"
        return resolve(self.tree, [*self.overrides, *changes], source)

    def segment(self, standings: Sequence[Standing], number: int) -> dict[str, Any] | None:
        """Return a trial's part of the pretraining, if the sweep trains a population."""
        if self.config.search.name != "pbt":
            return None
        ends = [0, *ends_of(self.config, Course.open(self.base).plan.total_steps)]
        place, source = number // self.config.search.population, standings[number].source
        key = standings[source].pretrained.removeprefix(pretrain.PREFIX) if source is not None else None
        return asdict(Segment(until=ends[place + 1], begin=ends[place], source=key))

    def record(self, standings: Sequence[Standing]) -> None:
        """Write the standings and the best trials' experiments."""
        records.write(self.folder, self.config, standings, lambda point: self.experiment(point, self.seeds[0]))

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seeds with which a point is trained; None is the experiment's own."""
        return self.config.seeds or (None,)

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial's outbox to MLflow and of requests to the trial."""
        return pool.place_of(self.folder, number)

    def trial(
        self, number: int, point: Point, experiment: Experiment | None = None, segment: dict[str, Any] | None = None
    ) -> Trial:
        """Return a point as a trial; ``experiment`` replaces the point's own experiment if that is not valid."""
        first, *others = [experiment] if experiment else [self.experiment(point, seed) for seed in self.seeds]
        return Trial(
            number=number,
            point=point,
            experiment=first,
            repeats=tuple(others),
            also=self.config.also,
            judged_by=self.config.scheduler.metric,
            segment=Segment(**segment) if segment else None,
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
    if sweep.config.search.name == "pbt":
        check_population(sweep)
    points = given(sweep.config, base)
    if sweep.config.finetuned:
        sought = [one for one in sweep.config.objectives if isinstance(one, Objective) and one.of == "finetune"]
        check_tested(sweep.base, [one.metric for one in sought])
        finetune.labelled_samples(finetune.downstream_of(sweep.base))
    if sweep.config.scheduler.metric:
        check_judged(sweep.base, sweep.config.scheduler, sweep.source)
    if points and sweep.config.search.name != "grid":
        check_point(sweep, points[0])
    return points


def check_population(sweep: Sweep) -> None:
    """Raise ConfigError if the space holds a field that cannot change while a training goes on."""
    check_base(sweep.config, sweep.base, sweep.source)
    for field, knob in sweep.config.space.items():
        if field.startswith("method."):
            check_same_state(field, [sweep.experiment({field: value}) for value in knob.ends()], sweep.source)


def describe(sweep: Sweep) -> list[str]:
    """Describe the search; raise ValueError if it cannot run."""
    points, config = check(sweep), sweep.config
    lines = told(config, config.trials or len(points))
    if config.search.name == "pbt":
        steps = ends_of(config, check_base(config, sweep.base, sweep.source))
        lines.append(f"segments end after steps {', '.join(map(str, steps))}")
    if (grace := config.scheduler.grace) is not None:
        steps = watched(sweep.base, config.objective, config.scheduler.metric)[0].curve.total_steps
        if grace >= steps:
            lines.append(f"none will end early: scheduler.grace {grace} is not below the {steps} steps; lower it")
    lines.append(f"folder: {sweep.folder}" + (" (there; goes on)" if sweep.folder.exists() else ""))
    return lines + [f"given: {space.describe(config.space, point)}" for point in points]


def check_point(sweep: Sweep, point: Point) -> None:
    """Raise ValueError if a point's encoder, method, task and shards do not fit together."""
    experiment = sweep.experiment(point)
    pretrain.check(experiment)
    if sweep.config.finetuned:
        finetune.check(experiment)


def run(sweep: Sweep, say: Say) -> list[Standing]:
    """Run the unfinished trials and return the standing of all; files are rewritten after each trial.

    A trial that fails is named, and the others go on. Raises ValueError before anything is run if the sweep cannot
    work, and StoppedError if it was asked to end; the same sweep continues from there.
    """
    with progress.phase(f"checking sweep {sweep.config.name}"):
        check(sweep)
    check_writable(sweep.base.home, "home")
    tags = {"kind": "sweep", "objective": sweep.config.objective.metric}
    with (
        stop.awaited(),
        claimed(sweep.folder, say),
        connection.connected(),
        guarding(),
        closing_abandoned(sweep.base),
        parent(sweep.folder, sweep.base, f"sweep {sweep.config.name}", described(sweep.config), tags) as tracker,
    ):
        also = tuple(one.metric for one in sweep.config.also)
        note(sweep.folder, JudgedBy(sweep.config.objective.metric, also, again=sweep.command))
        base = sweep.base
        needed = base.trainings if sweep.config.finetuned else base.pretraining
        concurrent = connection.concurrency(map(base.resources_of, needed), sweep.config.concurrent)
        judged, *_ = watched(base, sweep.config.objective, sweep.config.scheduler.metric)
        early = pruner(sweep.config.scheduler, judged.curve.total_steps)
        ledger = Ledger(sweep.folder, sweep.config, base.model_dump(mode="json"), early)
        ended = _ended(ledger.standings())
        with progress.phase(f"sweep {sweep.config.name}", ledger.total, "trial", ended) as phase:
            pool.run(workload(sweep, ledger, phase, say), concurrent)
        standings = ledger.standings()
        sweep.record(standings)
        records.log(sweep.folder, sweep.config, standings, tracker)
        if stop.requested():
            raise stop.StoppedError(
                f"sweep {sweep.config.name}: stopped with {_ended(standings)} of {ledger.total} trials ended, as "
                "asked; the same command goes on from there"
            )
        if sweep.config.search.name == "pbt" and _ended(standings) < ledger.total:
            raise RunError(_unfinished(sweep, standings))
    return standings


def _unfinished(sweep: Sweep, standings: Sequence[Standing]) -> str:
    """Say why a population's next segment cannot begin."""
    reasons = [sentence(sweep.config, one) for one in standings if one.state == "failed"]
    why = reasons[-1] if reasons else "a member has not ended; the same command goes on from there"
    return f"sweep {sweep.config.name}: the next segment cannot begin: {why}"


def _ended(standings: Sequence[Standing]) -> int:
    return sum(standing.state in ("done", "pruned", "failed") for standing in standings)


def workload(sweep: Sweep, ledger: Ledger, phase: Phase, say: Say) -> Workload:
    """Return the sweep's unfinished trials as jobs of a pool, which end in its ledger, its files and MLflow."""
    population = sweep.config.search.name == "pbt"

    def take() -> tuple[int, str] | Later | None:
        while (taken := ledger.take()) is not None and taken != "later":
            number, point = taken
            try:
                check_point(sweep, point)
            except ValueError as error:
                reason = " ".join(str(error).split())
                ended(number, Ending("failed", reason=reason, impossible=True), told=False)
            else:
                segment = sweep.segment(ledger.standings(), number)
                return number, json.dumps({"point": point, **({"segment": segment} if segment else {})})
        return "later" if taken else None

    def ended(number: int, ending: Ending | Exception, told: bool = True) -> None:
        if isinstance(ending, Exception):
            raised = f"its process failed: {type(ending).__name__}: {ending}"
            ending, told = Ending("failed", reason=str(ending) if isinstance(ending, RunError) else raised), False
        elif population:  # a member that fails is replaced, and never tried again
            ending = replace(ending, impossible=ending.state == "failed")
        ledger.end(number, ending)
        standings = ledger.standings()
        if not told:
            failed = sweep.trial(number, standings[number].point, sweep.base)
            trial.closed(failed, trial.opened(failed), ending)
        progress.update(phase, _ended(standings))
        say(f"{_ended(standings)} of {ledger.total}: {sentence(sweep.config, standings[number])}")
        sweep.record(standings)
        if ending.hopeless:
            raise ValueError(ending.reason)

    return Workload(
        folder=sweep.folder,
        total=ledger.total,
        take=take,
        do=lambda number, details: trial.run(sweep.trial(number, **json.loads(details))),
        ended=ended,
        say=say,
        reported=lambda number, report: (
            "pruned" if ledger.falls_behind(number, report["step"], report["value"]) else None
        ),
    )
