"""Stopwatch: train some steps in this process, without Ray, and time all that a training consists of."""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch

from data.shards.writer import write_atomically
from data.views.batch import Batch
from data.views.collate import collate
from methods.base import Method
from orchestrator.config.computing import Resources
from orchestrator.config.experiment import Experiment
from orchestrator.feed import stream
from orchestrator.feed.plan import BlockReader, FeedPlan, OpenedPlan
from orchestrator.history import metrics_of
from orchestrator.judging.validation import Validation
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.course import Course
from orchestrator.runs.labelled import downstream_of, labelled_samples
from orchestrator.runs.timing import NICENESS, NONE, RAY_NICENESS, TIMING, Spell, Timing
from orchestrator.training.checkpoint import State
from orchestrator.training.loop import Evaluation, Plan, Trainee, Watch, train
from orchestrator.training.resume import STATE
from orchestrator.training.world import World

WARM_UP, TIMED, LEAST = 3, 20, 3
# A training with slow steps is timed for as many as this allows, but at least ``LEAST``.
MOST_S = 180.0
# Of a larger validation set, whole volumes of at least so many samples are judged, and their time is scaled.
JUDGED_SLICES, JUDGED_VOLUMES = 64, 4


@dataclass(frozen=True)
class Subject:
    """A training to be timed; ``draw`` makes the picture of its first views."""

    plan: Plan
    feed: FeedPlan
    resources: Resources
    build: Callable[[], Trainee]
    draw: Callable[[], bytes] | None = None


def subject_of(experiment: Experiment, place: int | None) -> Subject:
    """Return stage number ``place`` as a subject, or the fine-tuning; encoders have their initial weights."""
    pictures = experiment.tracking.pictures
    if place is not None:
        course = Course.open(experiment, place)
        return Subject(
            plan=course.plan,
            feed=course.feed,
            resources=experiment.resources_of(course.stage),
            build=lambda: pretrain.build_trainee(experiment, place, {}),
            draw=(lambda: pretrain.drawn_views(course)) if pictures else None,
        )
    task = downstream_of(experiment)
    labelled = labelled_samples(task)
    plan = finetune.plan_of(experiment, labelled)
    feed = finetune.feed_of(experiment, labelled, plan)
    return Subject(
        plan=plan,
        feed=feed,
        resources=experiment.resources_of(task),
        build=lambda: finetune.build_trainee(experiment, None),
        draw=(lambda: finetune.drawn_views(experiment, labelled.shards, feed)) if pictures else None,
    )


def now() -> Spell:
    """Return the time, and what this process has computed."""
    return Spell(time.perf_counter(), time.process_time())


def since(began: Spell) -> Spell:
    """Return what has passed."""
    return now() + began * -1


@dataclass
class Stopwatch:
    """Times the steps of a loop; ends it after the timed ones and one more, which is judged and saved."""

    total: int = WARM_UP + TIMED + 1
    spells: dict[str, Spell] = field(default_factory=dict)
    ticks: list[Spell] = field(default_factory=lambda: [now()])
    entries: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    last: int | None = None

    def over(self, step: int) -> bool:
        """Tell whether ``step`` is the last."""
        if self.last is None:
            enough = step >= WARM_UP + LEAST + 1 and since(self.ticks[0]).wall_s > MOST_S
            self.last = step if enough or step >= self.total else None
        return step == self.last

    @contextmanager
    def clocked(self, name: str) -> Generator[None]:
        """Add what the body takes to a name."""
        began = now()
        yield
        self.spells[name] = self.spells.get(name, NONE) + since(began)

    def export(self, trainee: Trainee, folder: Path, method: Method) -> None:
        """Begin to time a checkpoint, and add the trainee's files."""
        self._saving = now()
        trainee.export(folder, method)

    def report(self, metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        """Take a step's entry; weigh a checkpoint, and copy it as Ray does to where it is kept."""
        self.entries += metrics["history"]
        self.ticks.append(now())
        if checkpoint is None:
            return
        with TemporaryDirectory() as folder:
            shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        self.spells["saving"] = since(self._saving)
        self.files = {file.name: file.stat().st_size for file in checkpoint.iterdir()}
        card = json.loads((checkpoint / STATE).read_text())
        self.files[STATE] -= len(json.dumps(card["history"])) - len("[]")

    def step(self, samples: int) -> Spell:
        """Return the median step, of ``samples`` samples of all ranks, without its wait for samples."""
        timed = slice(WARM_UP, len(self.entries) - 1)
        walls = [samples / one["samples_per_s"] * (1 - one["data_wait_share"]) for one in self.entries[timed]]
        computed = [b.cpu_s - a.cpu_s for a, b in zip(self.ticks, self.ticks[1:], strict=False)][timed]
        return Spell(median(walls), median(computed))


@dataclass(frozen=True)
class ClockedWatch:
    """A watch that is run after the last timed step."""

    watch: Watch
    name: str
    stopwatch: Stopwatch

    def due(self, step: int) -> bool:
        return self.stopwatch.over(step)

    def run(self, method: Method, world: World) -> dict[str, float]:
        with self.stopwatch.clocked(self.name):
            return self.watch.run(method, world)

    def exhausted(self, state: State) -> bool:
        """Go on: the stopwatch ends the loop."""
        return False


def timed(subject: Subject, began: Spell | None = None) -> Timing:
    """Train some steps and return what they took; ``began`` is when the process did."""
    began, stopwatch, on_gpu = began or now(), Stopwatch(), subject.resources.gpu
    trainee = subject.build()
    start = since(began)
    reading, share = _reading(subject.feed), _judge_few(trainee.evaluation)
    _train(subject, trainee, stopwatch)
    host, device = _host_peak(), torch.cuda.max_memory_reserved() if on_gpu else 0
    picture = b""
    if subject.draw:
        with stopwatch.clocked("drawing"):
            picture = subject.draw()
    spells, plain = stopwatch.spells, stopwatch.entries[WARM_UP]
    return Timing(
        start=start,
        steps=len(stopwatch.entries) - WARM_UP - 1,
        step=stopwatch.step(subject.feed.samples_per_step),
        reading=reading,
        epoch_end=spells.get("epoch", NONE),
        watches=tuple(spells[_watch_name(place)] for place in range(len(trainee.watches))),
        validation=spells.get("validation", NONE) * (1 / share),
        saving=spells["saving"],
        drawing=spells.get("drawing", NONE),
        host_bytes=host,
        device_bytes=device,
        checkpoint=stopwatch.files,
        entry_bytes=len(json.dumps(plain)),
        numbers=len(metrics_of(plain)),
        picture_bytes=len(picture),
    )


def _train(subject: Subject, trainee: Trainee, stopwatch: Stopwatch) -> None:
    """Train until the stopwatch ends it; measure, judge and save once, and end an epoch."""
    plan, feed = _shortened(subject, stopwatch.total)
    world = World(device=torch.device("cuda" if subject.resources.gpu else "cpu"))
    watches = tuple(ClockedWatch(one, _watch_name(place), stopwatch) for place, one in enumerate(trainee.watches))
    judged = trainee.evaluation and ClockedWatch(trainee.evaluation, "validation", stopwatch)

    def batches(first: int) -> Iterator[Batch]:
        return stream.batches(None, replace(feed, first_step=first), 0, world.device)

    def export(folder: Path, method: Method) -> None:
        stopwatch.export(trainee, folder, method)

    clocked = Trainee(trainee.method, judged, watches, export)
    train(clocked, plan, batches, world, stopwatch.report, None, lambda: stopwatch.over(len(stopwatch.entries) + 1))
    if type(trainee.method).after_epoch is not Method.after_epoch:
        with stopwatch.clocked("epoch"), torch.no_grad():
            trainee.method.after_epoch(plan.progress(len(stopwatch.entries)))


def _watch_name(place: int) -> str:
    return f"watch {place}"


def _shortened(subject: Subject, steps: int) -> tuple[Plan, FeedPlan]:
    """Return the plan and the feed with a report after each step; a shorter budget goes on for as long as is timed.

    Where readers read for the worker, little is read ahead: what they hold is not the worker's.
    """
    plan, feed = subject.plan, subject.feed
    total = max(plan.total_steps, steps)
    plan = replace(
        plan,
        schedule=replace(plan.schedule, total_steps=total),
        report_every_steps=1,
        report_every_s=0.0,
        checkpoint_every_steps=total,
    )
    ahead = 1 if feed.num_readers else feed.block_bytes
    return plan, replace(feed, last_step=total, num_readers=0, reader_resource=None, block_bytes=ahead)


def _reading(plan: FeedPlan) -> Spell:
    """Read a block, and collate the steps in it; return what a step's samples take."""
    plan = replace(plan, num_readers=0, reader_resource=None)
    block, size = OpenedPlan.open(plan).block_size, plan.samples_per_step
    plan = replace(plan, last_step=max(plan.last_step, plan.first_step + 1))
    reader = BlockReader(plan)
    began = now()
    table = reader.read(0)
    for place in range(0, table.num_rows, size):
        collate(table.slice(place, size))
    return since(began) * (size / min(block, table.num_rows))


def _judge_few(evaluation: Evaluation | None) -> float:
    """Leave a validation few of its volumes, if it has more; return which share of its samples is left."""
    if not isinstance(evaluation, Validation):
        return 1.0
    rows, shards = evaluation.row_ids, evaluation.shards
    most = JUDGED_SLICES if shards.spatial_dims == 2 else JUDGED_VOLUMES
    if len(rows) <= 2 * most:
        return 1.0
    volumes = shards.rows["volume"].take(rows).to_pylist()
    judged = set[str]()
    for place, volume in enumerate(volumes):
        if place >= most:
            break
        judged.add(volume)
    kept = [row for row, volume in zip(rows, volumes, strict=True) if volume in judged]
    evaluation.row_ids = rows[[volume in judged for volume in volumes]]
    return len(kept) / len(rows)


def _host_peak() -> int:
    """Return the peak of this process's own memory: of the pages that it shares with others, few are voxels."""
    own = psutil.Process().memory_info()
    status = Path("/proc/self/status")
    if not status.exists():  # macOS counts bytes, and has no other count of the peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    peak = int(lines["VmHWM"].split()[0]) * 1024
    return peak - own.shared


def main(words: Sequence[str]) -> int:
    """Time the training of an experiment's file, stage or ``finetune``, and write what it took to another file."""
    asked, named, answer = words
    os.nice(max(0, int(os.environ.get(NICENESS, RAY_NICENESS)) - os.nice(0)))
    process = psutil.Process()
    began = Spell(time.perf_counter() - (time.time() - process.create_time()), 0.0)
    experiment = Experiment.model_validate_json(Path(asked).read_bytes())
    subject = subject_of(experiment, None if named == "finetune" else int(named))
    if not subject.resources.gpu:
        torch.set_num_threads(max(1, torch.get_num_threads(), round(subject.resources.cpus_per_worker)))
    write_atomically(Path(answer), TIMING.dump_json(timed(subject, began)))
    return 0
