"""Trial: one point of a sweep, in a process of the pool: train, report, and end early when asked."""

from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import fmean

from ray import tune

from data.spelling import did_you_mean
from orchestrator import stop
from orchestrator.config.experiment import Experiment
from orchestrator.direction import TEST
from orchestrator.history import HISTORY, Tail
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.run import tracker_of
from orchestrator.runs.segment import Segment
from orchestrator.runs.work import work_of
from orchestrator.stop import RunError
from orchestrator.sweeps.settings import Objective, TrialCost
from orchestrator.sweeps.space import Point, Scalar
from orchestrator.sweeps.study import Ending
from orchestrator.sweeps.watching import Verdict, WatchedCurve, curve_of, judged_folder, watched
from orchestrator.terminal import progress
from orchestrator.tracking.tags import DESCRIPTION
from orchestrator.tracking.tracker import Tracker

STATUS = {"done": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True)
class Trial:
    """A point with its experiment.

    folder     its own, below the sweep's
    label      its name for people
    params     the point as plain numbers and strings, for MLflow's charts
    repeats    the same experiment with further seeds
    also       what is sought besides the objective
    judged_by  a metric of the pretraining by which it may be ended; by default the objective
    segment    the part of the pretraining, of a population's member
    """

    number: int
    point: Point
    experiment: Experiment
    objective: Objective
    folder: Path
    label: str
    params: dict[str, Scalar]
    repeats: tuple[Experiment, ...] = ()
    also: tuple[Objective | TrialCost, ...] = ()
    judged_by: str | None = None
    segment: Segment | None = None

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The experiment with each of its seeds."""
        return (self.experiment, *self.repeats)

    @property
    def finetuned(self) -> bool:
        """Whether anything that is sought needs the fine-tuning."""
        return any(isinstance(one, Objective) and one.of == "finetune" for one in (self.objective, *self.also))


@dataclass
class _Training:
    """The trainings of a trial, in a thread of its process."""

    trial: Trial
    verdict: Verdict = field(default_factory=Verdict)

    def run(self) -> list[tuple[float, ...]]:
        """Run the missing trainings with each seed; return the values of all that is sought, by seed."""
        return [self._repeat(experiment) for experiment in self.trial.experiments]

    def _repeat(self, experiment: Experiment) -> tuple[float, ...]:
        trial, pretrained, scores = self.trial, None, dict[str, float]()
        if experiment.hands_over:
            pretrained = pretrain.pretrain(experiment, trial.folder, trial.label, trial.segment)
        if trial.judged_by is not None and experiment is trial.experiment:
            self.verdict.await_for(trial.folder)
        if trial.finetuned:
            scores = finetune.finetune(experiment, pretrained, trial.folder, trial.label).scores
        return tuple(self._value(one, experiment, scores) for one in (trial.objective, *trial.also))

    def _value(self, sought: Objective | TrialCost, experiment: Experiment, scores: dict[str, float]) -> float:
        """Return what a training with one seed gives; raise ValueError if it is not a number."""
        trial = self.trial
        if isinstance(sought, TrialCost):
            return sum(work.hours for work in work_of(experiment, trial.finetuned, trial.segment))
        value = scores.get(sought.metric) if sought.of == "finetune" else _end(experiment, sought, trial.segment)
        if value is None or not isfinite(value):
            raise ValueError(f"{sought.metric} is {value}; expected a number")
        return value


def _end(experiment: Experiment, sought: Objective, segment: Segment | None) -> float | None:
    """Return the last point of a pretraining's curve, if there is one."""
    lines = Tail(judged_folder(experiment, sought, segment) / HISTORY).read()
    points = curve_of(experiment, sought, segment).points(lines)
    return points[-1][1] if points else None


def run(trial: Trial) -> Ending:
    """Train the point and return how it ended; report its curve to the pool and MLflow meanwhile."""
    with progress.phase(trial.label):
        tracker, training = opened(trial), _Training(trial)
        watching = watched(trial.experiment, trial.objective, trial.judged_by, trial.segment)
        report = partial(_report, watching, tracker, training.verdict)
        future = stop.heeding(str(trial.folder), training.run, report)
        ending = _ending(trial, future, watching)
        ending = replace(
            ending,
            run=judged_folder(trial.experiment, trial.objective, trial.segment).name,
            work=tuple(one for own in trial.experiments for one in work_of(own, trial.finetuned, trial.segment)),
            pretrained=pretrain.folder_of(trial.experiment, trial.segment).name,
        )
        closed(trial, tracker, ending)
        return ending


def _report(watching: list[WatchedCurve], tracker: Tracker, verdict: Verdict) -> None:
    """Tell the pool and MLflow what has been trained since the last report."""
    asked = verdict.asked
    try:
        for one in watching:
            points = one.new()
            for step, value in points if one.judged else []:
                tune.report({"step": step, "value": value})
            if points:
                tracker.metrics([{"step": step - 1, one.curve.metric: value} for step, value in points])
                tracker.flush()
            if one.curve.missing:
                stop.request()
    finally:
        if asked:
            verdict.give()


def opened(trial: Trial) -> Tracker:
    """Open the trial's MLflow run."""
    experiment = trial.experiment
    tracker = tracker_of(trial.folder, experiment)
    sweep = trial.folder.parents[1]
    of = "fine-tuning" if trial.objective.of == "finetune" else "pretraining"
    seeds = f", the mean over {len(trial.experiments)} seeds" if trial.repeats else ""
    tags = {
        "kind": "trial",
        "trial": str(trial.number),
        "state": "running",
        DESCRIPTION: (
            f"One point of the sweep. `{trial.objective.metric.removeprefix(TEST)}` is the curve of its {of}, "
            f"`best/{trial.objective.metric}` is the value by which it is judged{seeds}, if it ran to its end. Its "
            "trainings are its child runs; a training that another run has done already is that run's child."
        ),
    }
    tracker.start(experiment.name, trial.label, f"{sweep.name}-{trial.number}", tags, sweep)
    tracker.params({name: str(value) for name, value in trial.params.items()})
    tracker.flush(force=True)
    return tracker


def closed(trial: Trial, tracker: Tracker, ending: Ending) -> None:
    """Log how a trial ended and close its MLflow run."""
    tags: dict[str, str] = {"state": ending.state}
    if ending.reason:
        tags["reason"] = ending.reason
    tracker.tags(tags)
    if ending.state == "done" and ending.value is not None:
        values = zip((trial.objective, *trial.also), (ending.value, *ending.others), strict=True)
        tracker.summary({f"best/{sought.metric}": value for sought, value in values})
    tracker.finish(STATUS[ending.state])
    tracker.flush(force=True)


def _ending(trial: Trial, training: Future[list[tuple[float, ...]]], watching: list[WatchedCurve]) -> Ending:
    try:
        values = training.result()
    except stop.StoppedError as error:
        for one in watching:
            if missing := one.curve.missing:
                what = "scheduler.metric" if one.curve.metric == trial.judged_by else "objective.metric"
                reason = f"{what} {one.curve.metric!r} is not one of {list(missing)}"
                reason += f"{did_you_mean(one.curve.metric, missing)}; name one of them"
                return Ending("failed", reason=reason, hopeless=True)
        if stop.marked(str(trial.folder)) == "pruned":
            return Ending("pruned")
        return Ending("stopped", reason=str(error))
    except (RunError, ValueError) as error:
        return Ending("failed", reason=" ".join(str(error).split()))
    first, *others = (fmean(column) for column in zip(*values, strict=True))
    repeats = tuple(own[0] for own in values) if trial.repeats else ()
    return Ending("done", first, others=tuple(others), repeats=repeats)
