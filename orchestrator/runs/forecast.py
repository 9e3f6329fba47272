"""Forecast: the time, memory and disk that trainings will take, and how each of the three is known."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import Downstream, Stage
from orchestrator.feed import stream
from orchestrator.feed.plan import FeedPlan
from orchestrator.judging.cases import CASES
from orchestrator.judging.validation import CONFUSIONS, PREDICTIONS
from orchestrator.runs import finetune
from orchestrator.runs.course import Course
from orchestrator.runs.earlier import EarlierRun, earlier_run
from orchestrator.runs.labelled import LabelledSamples, downstream_of
from orchestrator.runs.network import NETWORK, outline_network
from orchestrator.runs.sizes import checkpoint_files
from orchestrator.runs.timing import NONE, Spell, Timing, timing_of
from orchestrator.tracking.store import default_uri, sqlite_file
from orchestrator.training.checkpoint import ENCODER
from orchestrator.training.loop import Plan
from orchestrator.training.ray_train import KEPT

# What the command and Ray need beside the workers, as seen with ray 2.60 on two cores. The times are multiples of the
# start of the process that was timed: how much longer all processes take to start, and how much more they compute.
COMMAND_STARTS, TRAINING_STARTS, READING_STARTS = Spell(3.5, 4.6), Spell(3.0, 3.6), Spell(1.5, 3.0)
COMMAND_BYTES, RAY_BYTES, DATA_BYTES, READER_BYTES = 0.6e9, 0.94e9, 0.55e9, 0.2e9
FIXED_BYTES = COMMAND_BYTES + RAY_BYTES
REPORT_S = 0.1  # until Train's controller looks at its workers
# MLflow's store: a new one, and a number in it.
STORE_BYTES, NUMBER_BYTES = 1_000_000, 210
# Of a training that was not timed.
PROBE = "probe"
FORMULA = "formula, from the sizes of weights and optimiser"
ENTRY_BYTES, NUMBERS, PICTURE_BYTES = 330, 8, 150_000
STAMP_BYTES = 50  # a history's line has the stage and the time beside the entry


@dataclass(frozen=True)
class Rounds:
    """How often over a training's budget something is done."""

    validations: int = 0
    checkpoints: int = 0
    watches: tuple[int, ...] = ()
    test_share: float = 0.0
    kept: int = KEPT
    exports: tuple[str, ...] = (ENCODER,)


@dataclass(frozen=True)
class Work:
    """A training as far as its cost depends on it; ``name`` is that of its row."""

    name: str
    plan: Plan
    feed: FeedPlan
    rounds: Rounds
    files: dict[str, int]
    timing: Timing | None = None
    earlier: EarlierRun | None = None
    cpus_per_worker: float = 1.0


@dataclass(frozen=True)
class Forecast:
    """What some trainings will take, one after the other.

    time        with the start of each training; None: unknown
    start       of the command that runs them, once
    memory_bytes  of all processes, while the largest trains; None: unknown
    device_bytes  of a GPU
    disk_bytes    that stay in the home, and in ``resources.storage``
    known         how its time, memory and disk are known
    """

    name: str
    time: Spell | None = None
    start: Spell = NONE
    memory_bytes: float | None = None
    device_bytes: int = 0
    disk_bytes: float = 0.0
    known: dict[str, tuple[str, ...]] = field(default_factory=dict)
    busy: bool = False
    trainings: int = 1

    def times(self, number: float) -> "Forecast":
        """Return what so many of them take, one after the other."""
        time = None if self.time is None else self.time * number
        return replace(self, time=time, disk_bytes=self.disk_bytes * number, trainings=round(self.trainings * number))


def together(forecasts: Sequence[Forecast], name: str) -> Forecast:
    """Return what all take, one after the other: sums of time and disk, the largest memory."""
    times = [one.time for one in forecasts if one.time is not None]
    memories = [one.memory_bytes for one in forecasts if one.memory_bytes is not None]
    complete = len(times) == len(memories) == len(forecasts)
    known: dict[str, tuple[str, ...]] = {}
    for one in forecasts:
        for what, words in one.known.items():
            known[what] = tuple(dict.fromkeys((*known.get(what, ()), *words)))
    return Forecast(
        name,
        time=sum(times, NONE) if len(times) == len(forecasts) else None,
        start=max((one.start for one in forecasts), key=lambda start: start.wall_s, default=NONE),
        memory_bytes=max(memories, default=0.0) if complete else None,
        device_bytes=max((one.device_bytes for one in forecasts), default=0),
        disk_bytes=sum(one.disk_bytes for one in forecasts),
        known=known,
        busy=any(one.busy for one in forecasts),
        trainings=sum(one.trainings for one in forecasts),
    )


def of_command(forecasts: Sequence[Forecast], experiment: Experiment, at_once: int = 1) -> Forecast:
    """Return what the command takes that runs some trainings, ``at_once`` of them at the same time."""
    total = together(forecasts, "in all")
    if not forecasts:
        return total
    memory = total.memory_bytes and total.memory_bytes + (at_once - 1) * (total.memory_bytes - FIXED_BYTES)
    file = sqlite_file(experiment.tracking.uri or default_uri(Path(experiment.home)))
    return replace(
        total,
        time=total.time and Spell(total.time.wall_s / at_once, total.time.cpu_s) + total.start,
        memory_bytes=memory,
        disk_bytes=total.disk_bytes + (STORE_BYTES if file and not file.exists() else 0),
    )


def stage_work(course: Course, measured: bool, probed: bool = False) -> Work:
    """Return a stage's work; with ``measured``, its steps are timed, and with ``probed``, the experiment's probe.

    Raises RunError if they could not be.
    """
    experiment, stage, total = course.experiment, course.stage, course.plan.total_steps
    health, probe = experiment.health, experiment.probe
    watches = [health.times] if health.times and min(course.samples.num_samples, health.samples) > 1 else []
    watches += [probe.times] if probe and (probe.times or probed) else []
    if probe and probed and not probe.times:
        experiment = experiment.model_copy(update={"probe": probe.model_copy(update={"times": 1})})
    last = course.index == len(experiment.pretraining) - 1
    rounds = Rounds(
        checkpoints=ceil(total / course.plan.checkpoint_every_steps),
        watches=tuple(min(times, total) for times in watches),
        exports=(ENCODER,) if last else (),
    )
    files = checkpoint_files(course.outline(), stage.optimiser)
    return _work(experiment, stage, course.index, Work(stage.name, course.plan, course.feed, rounds, files), measured)


def finetuning_work(experiment: Experiment, labelled: LabelledSamples, measured: bool) -> Work:
    """Return the fine-tuning's work; with ``measured``, its steps are timed. Raises RunError if they could not be."""
    task, plan = downstream_of(experiment), finetune.plan_of(experiment, labelled)
    rhythm, total = finetune.rhythm_of(experiment, labelled), plan.total_steps
    judged = min(total, rhythm.times(total) + (not rhythm.due(total)))
    rounds = Rounds(
        validations=judged,
        checkpoints=min(total, judged + (total - 1) // plan.checkpoint_every_steps),
        test_share=labelled.test.num_samples / labelled.val.num_samples if labelled.test else 0.0,
        kept=KEPT + 1,  # the newest, beside the best ones
        exports=(NETWORK, CASES, PREDICTIONS, CONFUSIONS),
    )
    feed = finetune.feed_of(experiment, labelled, plan)
    files = checkpoint_files(outline_network(experiment, labelled), task.optimiser)
    return _work(experiment, task, None, Work(finetune.STAGE, plan, feed, rounds, files), measured)


def _work(
    experiment: Experiment, training: Stage | Downstream, place: int | None, work: Work, measured: bool
) -> Work:
    return replace(
        work,
        timing=timing_of(experiment, place) if measured else None,
        earlier=None if measured else earlier_run(experiment, training),
        cpus_per_worker=experiment.resources_of(training).cpus_per_worker,
    )


def forecast(work: Work, experiment: Experiment) -> Forecast:
    """Return what a training will take."""
    timing, earlier, steps = work.timing, work.earlier, work.plan.total_steps
    known: dict[str, tuple[str, ...]] = {"disk": (FORMULA,)}
    time, start, memory, device = None, NONE, None, 0
    if timing:
        time, start = _time(work, timing), timing.start * COMMAND_STARTS
        memory, device = _memory(work, timing), timing.device_bytes
        how = (f"{timing.steps} timed steps on this machine",)
        known = {"time": how, "memory": how, "disk": how}
    elif earlier:
        time = Spell(earlier.step_s * steps)
        known["time"] = (f"run {earlier.name}, if its machine was like this one",)
    busy = bool(timing and timing.busy)
    return Forecast(work.name, time, start, memory, device, _disk(work, experiment), known, busy)


def probe_forecast(work: Work) -> Forecast:
    """Return what the probe of the trained and of the initial encoder takes, after the last stage's work."""
    timing = work.timing
    if timing is None:
        return Forecast(PROBE, trainings=0)
    known = {"time": ("one probe",), "memory": (f"{timing.steps} timed steps on this machine",)}
    memory = FIXED_BYTES + timing.host_bytes
    start = timing.start * COMMAND_STARTS
    return Forecast(PROBE, timing.watches[-1] * 2, start, memory, known=known, trainings=0)


def _time(work: Work, timing: Timing) -> Spell:
    """Add up a training: its start, steps, and what is done between steps."""
    steps, world, rounds = work.plan.total_steps, work.feed.world, work.rounds
    on_cores = 1.0 if timing.device_bytes else max(1.0, world * work.cpus_per_worker / (os.cpu_count() or 1))
    reading = timing.reading.wall_s / max(1, work.feed.num_readers)
    step_s = max(timing.step.wall_s * on_cores, reading)
    between = [timing.epoch_end * work.plan.epochs(steps), timing.saving * rounds.checkpoints, timing.drawing]
    between += [spell * times for spell, times in zip(timing.watches, rounds.watches, strict=True)]
    between.append(timing.validation * (rounds.validations + rounds.test_share))
    between.append(Spell(REPORT_S * reports(work.plan, step_s)))
    between += [timing.start * TRAINING_STARTS, timing.start * float(bool(rounds.test_share))]
    between += [timing.start * READING_STARTS] if work.feed.num_readers else []
    computed = (timing.step.cpu_s + timing.reading.cpu_s) * world
    return sum(between, Spell(step_s, computed) * steps)


def reports(plan: Plan, step_s: float) -> int:
    """Return how often the workers report over a budget of steps that take so long."""
    every = plan.report_every_steps
    every *= max(1, ceil(plan.report_every_s / (every * step_s)))
    return ceil(plan.total_steps / every)


def _memory(work: Work, timing: Timing) -> float:
    """Add up the processes of a training: the command, Ray, readers, and workers."""
    feed = work.feed
    reading = DATA_BYTES + feed.num_readers * READER_BYTES + stream.bytes_in_flight(feed) if feed.num_readers else 0
    return COMMAND_BYTES + RAY_BYTES + reading + feed.world * timing.host_bytes


def _disk(work: Work, experiment: Experiment) -> float:
    """Add up what a training leaves: checkpoints, history, exports and pictures, and what MLflow copies of these."""
    timing, rounds, steps = work.timing, work.rounds, work.plan.total_steps
    files = timing.checkpoint if timing else work.files
    entry = (timing.entry_bytes if timing else ENTRY_BYTES) + STAMP_BYTES
    exported = sum(files.get(name, 0) for name in rounds.exports)
    if experiment.tracking.pictures:
        exported += timing.picture_bytes if timing else PICTURE_BYTES
    kept = min(rounds.kept, rounds.checkpoints)
    held = kept * (sum(files.values()) + entry * steps / rounds.checkpoints)
    copies, numbers = 1, 0
    if sqlite_file(experiment.tracking.uri or default_uri(Path(experiment.home))):
        copies, numbers = 2, (timing.numbers if timing else NUMBERS) * steps
    return held + copies * exported + entry * steps + NUMBER_BYTES * numbers
