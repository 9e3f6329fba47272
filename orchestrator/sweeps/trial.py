"""Trial: one point of a sweep, in a process of the pool: train, report, and end early when asked."""

from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path

from ray import tune

from data.shards.index import ShardSet
from data.spelling import did_you_mean
from orchestrator import stop
from orchestrator.config.experiment import Experiment
from orchestrator.direction import TEST
from orchestrator.history import HISTORY, Tail
from orchestrator.results import curve as curves
from orchestrator.results.curve import Curve
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.course import Course
from orchestrator.runs.run import tracker_of
from orchestrator.stop import RunError
from orchestrator.sweeps.settings import Objective
from orchestrator.sweeps.space import Point, Scalar
from orchestrator.sweeps.study import Ending
from orchestrator.terminal import progress
from orchestrator.tracking.tags import DESCRIPTION
from orchestrator.tracking.tracker import Tracker

STATUS = {"done": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True)
class Trial:
    """A point with its experiment.

    folder  its own, below the sweep's
    label   its name for people
    params  the point as plain numbers and strings, for MLflow's charts
    """

    number: int
    point: Point
    experiment: Experiment
    objective: Objective
    folder: Path
    label: str
    params: dict[str, Scalar]


def run(trial: Trial) -> Ending:
    """Train the point and return how it ended; report its curve to the pool and MLflow meanwhile."""
    with progress.phase(trial.label):
        tracker = opened(trial)
        curve, tail = curve_of(trial), Tail(_watched(trial) / HISTORY)
        last: float | None = None

        def report() -> None:
            nonlocal last
            if points := curve.points(tail.read()):
                last = points[-1][1]
                for step, value in points:
                    tune.report({"step": step, "value": value})
                tracker.metrics([{"step": step - 1, curve.metric: value} for step, value in points])
                tracker.flush()
            if curve.missing:
                stop.request()

        training = stop.heeding(str(trial.folder), partial(_train, trial), report)
        ending = replace(_ending(trial, training, curve, last), run=_watched(trial).name)
        closed(trial, tracker, ending)
        return ending


def opened(trial: Trial) -> Tracker:
    """Open the trial's MLflow run."""
    experiment = trial.experiment
    tracker = tracker_of(trial.folder, experiment)
    sweep = trial.folder.parents[1]
    of = "fine-tuning" if trial.objective.of == "finetune" else "pretraining"
    tags = {
        "kind": "trial",
        "trial": str(trial.number),
        "state": "running",
        DESCRIPTION: (
            f"One point of the sweep. `{trial.objective.metric.removeprefix(TEST)}` is the curve of its {of}, "
            f"`best/{trial.objective.metric}` is the value by which it is judged, if it ran to its end. Its "
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
        tracker.summary({f"best/{trial.objective.metric}": ending.value})
    tracker.finish(STATUS[ending.state])
    tracker.flush(force=True)


def _train(trial: Trial) -> float | None:
    """Run the missing trainings of the trial; return a fine-tuning's score."""
    pretrained = None
    if trial.experiment.hands_over:
        pretrained = pretrain.pretrain(trial.experiment, trial.folder, trial.label)
    if trial.objective.of == "pretrain":
        return None
    done = finetune.finetune(trial.experiment, pretrained, trial.folder, trial.label)
    return done.scores.get(trial.objective.metric)


def _ending(trial: Trial, training: Future[float | None], curve: Curve, last: float | None) -> Ending:
    metric = trial.objective.metric
    try:
        score = training.result()
    except stop.StoppedError as error:
        if curve.missing:
            reason = f"objective.metric {metric!r} is not one of {list(curve.missing)}"
            reason += f"{did_you_mean(metric, curve.missing)}; name one of them"
            return Ending("failed", reason=reason, hopeless=True)
        if stop.marked(str(trial.folder)) == "pruned":
            return Ending("pruned", last)
        return Ending("stopped", last, str(error))
    except (RunError, ValueError) as error:
        return Ending("failed", reason=" ".join(str(error).split()))
    value = last if trial.objective.of == "pretrain" else score
    if value is None or not isfinite(value):
        return Ending("failed", reason=f"{metric} is {value}; expected a number")
    return Ending("done", value)


# Prefixes of metrics that are measured only at times, each with a metric that is always measured with it.
_WATCHED = {"health/": "health/collapse", "probe/": "probe/linear_accuracy"}


def curve_of(trial: Trial) -> Curve:
    """Return the curve of the objective; a score on the test split has that of the same score of the validation."""
    experiment, metric = trial.experiment, trial.objective.metric
    if trial.objective.of == "finetune":
        task = finetune.downstream_of(experiment)
        steps = finetune.plan_of(experiment, finetune.labelled_samples(task)).total_steps
        return Curve(metric.removeprefix(TEST), finetune.STAGE, 1, steps, sign_of_life="score")
    last = Course.open(experiment, len(experiment.pretraining) - 1)
    steps = last.plan.total_steps
    watched = next((name for prefix, name in _WATCHED.items() if metric.startswith(prefix)), None)
    every = 1 if watched else curves.every(steps)
    return Curve(metric, last.stage.name, every, steps, sign_of_life=watched or "loss")


def _watched(trial: Trial) -> Path:
    """Return the folder of the run that reports the objective."""
    if trial.objective.of == "pretrain":
        return _pretraining(trial.experiment)
    experiment = trial.experiment
    start = _pretraining(experiment).name.removeprefix("pretrain-") if trial.experiment.hands_over else "scratch"
    key = experiment.finetune_key(start, ShardSet.open(finetune.downstream_of(experiment).shards).digest)
    return Path(experiment.home) / experiment.name / f"finetune-{key}"


def _pretraining(experiment: Experiment) -> Path:
    return pretrain.folder_of(experiment)
