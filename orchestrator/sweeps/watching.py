"""Watching: the growing curves of a trial's trainings, what its pool hears of them, and what the pool has decided."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import stop
from orchestrator.config.experiment import Experiment
from orchestrator.config.refusal import ConfigError
from orchestrator.direction import TEST
from orchestrator.history import HISTORY, Tail
from orchestrator.results import curve as curves
from orchestrator.results.curve import Curve
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.course import Course
from orchestrator.runs.segment import Segment
from orchestrator.runs.work import finetuning_folder
from orchestrator.sweeps.settings import Objective, Scheduler

# Prefixes of metrics that are measured only at times, each with a metric that is always measured with it.
MEASURED_AT_TIMES = {"health/": "health/collapse", "probe/": "probe/linear_accuracy"}
WAIT_S = 0.5


@dataclass
class WatchedCurve:
    """A curve of one training, read as its history grows; ``judged`` says that the trial may be ended by it."""

    curve: Curve
    tail: Tail
    judged: bool

    def new(self) -> list[tuple[int, float]]:
        """Return the points that were completed since the last call."""
        return self.curve.points(self.tail.read())


class Verdict:
    """A pretraining's wait for what the pool decides on its last steps, before it is fine-tuned.

    The pool has decided on a report by the time that ``tune.report`` returns.
    """

    def __init__(self) -> None:
        self._asked, self._given = threading.Event(), threading.Event()

    def await_for(self, folder: Path) -> None:
        """Wait until all steps were reported; raise StoppedError if the pool has ended the trial."""
        self._asked.set()
        while not self._given.wait(WAIT_S) and not stop.requested():
            pass
        if stop.requested() or stop.marked(str(folder)):
            raise stop.StoppedError("the fine-tuning was not begun, as asked; the same command goes on from there")

    @property
    def asked(self) -> bool:
        """Tell whether the pretraining has ended, and all its steps are in its history."""
        return self._asked.is_set()

    def give(self) -> None:
        """Let the fine-tuning begin, unless the trial has been ended."""
        self._given.set()


def watched(
    experiment: Experiment, objective: Objective, judged_by: str | None, segment: Segment | None = None
) -> list[WatchedCurve]:
    """Return the curve of the objective, and that of the metric by which a trial is ended, if it is another."""
    history = judged_folder(experiment, objective, segment) / HISTORY
    shown = WatchedCurve(curve_of(experiment, objective, segment), Tail(history), True)
    if judged_by is None:
        return [shown]
    pretraining = Tail(pretrain.folder_of(experiment) / HISTORY)
    return [WatchedCurve(pretraining_curve(experiment, judged_by), pretraining, True), replace(shown, judged=False)]


def curve_of(experiment: Experiment, objective: Objective, segment: Segment | None = None) -> Curve:
    """Return the curve of an objective; a score on the test split has that of the same score of the validation."""
    if objective.of == "pretrain":
        return pretraining_curve(experiment, objective.metric, segment)
    task = finetune.downstream_of(experiment)
    steps = finetune.plan_of(experiment, finetune.labelled_samples(task)).total_steps
    return Curve(objective.metric.removeprefix(TEST), finetune.STAGE, 1, steps, sign_of_life="score")


def pretraining_curve(experiment: Experiment, metric: str, segment: Segment | None = None) -> Curve:
    """Return the curve of a metric of the pretraining's last stage."""
    last = Course.open(experiment, len(experiment.pretraining) - 1)
    steps = last.plan.total_steps
    at_times = next((name for prefix, name in MEASURED_AT_TIMES.items() if metric.startswith(prefix)), None)
    every = 1 if at_times else curves.every(steps)
    return Curve(metric, last.stage.name, every, segment.until if segment else steps, sign_of_life=at_times or "loss")


def check_judged(base: Experiment, scheduler: Scheduler, source: str) -> None:
    """Raise ConfigError if pretrainings could not be ended early by the scheduler's metric."""
    metric = str(scheduler.metric)
    what = f"{source}, scheduler metric {metric}"
    if not base.trains:
        raise ConfigError(f"{what}: the experiment pretrains nothing that could end early; leave it out")
    times = base.health.times if metric.startswith("health/") else None
    if metric.startswith("probe/"):
        times = base.probe.times if base.probe else 0
    section = metric.partition("/")[0]
    if times is not None and times < 2:
        raise ConfigError(
            f"{what}: {section}.times is {times}, so that it is not measured before the end; set {section}.times=10"
        )


def judged_folder(experiment: Experiment, objective: Objective, segment: Segment | None = None) -> Path:
    """Return the folder of the run that reports the objective."""
    if objective.of == "pretrain":
        return pretrain.folder_of(experiment, segment)
    return finetuning_folder(experiment, segment=segment)
