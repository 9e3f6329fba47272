"""Estimate: what an experiment would do and need, said before it is run (``--dry-run``)."""

from dataclasses import dataclass

from rich.console import Group
from rich.syntax import Syntax
from rich.table import Table

from data.shards.index import Selection, ShardSet
from data.shards.keep import Keep
from orchestrator.config.experiment import Experiment
from orchestrator.feed import stream
from orchestrator.feed.stream import FeedPlan
from orchestrator.runs.course import Course, courses
from orchestrator.runs.finetune import STAGE as FINETUNING
from orchestrator.runs.finetune import LabelledSamples, downstream_of, feed_of, plan_of
from orchestrator.runs.finetune import check as check_finetuning
from orchestrator.runs.forecast_text import told
from orchestrator.runs.memory import Memory, finetuning_memory, stage_memory
from orchestrator.runs.outlook import missing
from orchestrator.runs.pretrain import check
from orchestrator.training.loop import Plan

COLUMNS = ("stage", "method", "samples", "epochs", "steps", "GPU memory per worker", "held for reading")


@dataclass(frozen=True)
class Needs:
    """What a training takes; a method that trains nothing has no steps and takes no memory.

    memory_bytes   on the device of each worker
    held_bytes     in the memory of the cluster, of samples that are being read
    doubt          why its schedule lets it hardly train, if that is so
    """

    name: str
    method: str
    num_samples: int
    epochs: float = 0
    steps: int = 0
    memory_bytes: float = 0
    held_bytes: int = 0
    doubt: str | None = None

    @property
    def memory(self) -> str:
        return f"about {self.memory_bytes / 2**30:.1f} GiB" if self.steps else "-"

    @property
    def cells(self) -> tuple[str, ...]:
        """Return a cell for each of ``COLUMNS``."""
        held = f"{self.held_bytes / 2**20:.0f} MiB" if self.steps else "-"
        epochs = f"{self.epochs:.1f}" if self.steps else "0"
        return (self.name, self.method, f"{self.num_samples:,}", epochs, f"{self.steps:,}", self.memory, held)


def describe(experiment: Experiment, finetuned: bool = False, probed: bool = False, measured: bool = False) -> Group:
    """Say what would run: the resolved config, what each training takes, a forecast, the shards, and doubts.

    ``measured`` times steps of each training for the forecast. Raises ValueError if it could not run: the
    pretraining, and the fine-tuning or the probe after it.
    """
    trainings = pretraining_needs(experiment)
    stages = courses(experiment)
    lines = list(dict.fromkeys(line for course in stages for line in _samples(course)))
    if finetuned:
        needs, labelled = finetuning_needs(experiment)
        trainings.append(needs)
        lines += _labelled(experiment, labelled)
    if probed:
        lines.append(_probe(experiment))
    table = Table(*COLUMNS)
    for needs in trainings:
        table.add_row(*needs.cells)
    feeding = experiment.trainings if finetuned else experiment.pretraining
    idle = filter(None, (experiment.idle_workers(training) for training in feeding))
    resolved = Syntax(experiment.model_dump_json(indent=2), "json", background_color="default")
    starts = filter(None, (course.start_said() for course in stages))
    doubts = [f"{needs.name}: {needs.doubt}" for needs in trainings if needs.doubt]
    doubts += [doubt for course in stages for doubt in course.doubts()]
    forecasts = missing(experiment, finetuned, probed, measured)
    return Group(resolved, table, *told(forecasts, experiment), *lines, *starts, *idle, *doubts)


def pretraining_needs(experiment: Experiment) -> list[Needs]:
    """Return what each stage takes; raise ValueError if it could not run."""
    return [_stage_needs(course) for course in check(experiment)]


def _stage_needs(course: Course) -> Needs:
    names = (course.stage.name, course.stage.method.name)
    if not course.trains:
        return Needs(*names, course.samples.num_samples)
    return _needs(names, course.samples.num_samples, course.plan, course.feed, stage_memory(course))


def finetuning_needs(experiment: Experiment) -> tuple[Needs, LabelledSamples]:
    """Return what the fine-tuning takes, and its samples; raise ValueError if it could not run."""
    labelled, task = check_finetuning(experiment), downstream_of(experiment)
    plan = plan_of(experiment, labelled)
    feed_plan = feed_of(experiment, labelled, plan)
    memory = finetuning_memory(experiment, labelled, feed_plan)
    return _needs((FINETUNING, task.task.name), labelled.train.num_samples, plan, feed_plan, memory), labelled


def _needs(names: tuple[str, str], num_samples: int, plan: Plan, feed_plan: FeedPlan, memory: Memory) -> Needs:
    return Needs(
        *names,
        num_samples=num_samples,
        epochs=plan.total_steps * plan.stream.batch_size / num_samples,
        steps=plan.total_steps,
        memory_bytes=memory.total_bytes(feed_plan.samples_per_step, plan.num_chunks),
        held_bytes=stream.bytes_in_flight(feed_plan),
        doubt=plan.schedule.doubt(),
    )


def _labelled(experiment: Experiment, labelled: LabelledSamples) -> list[str]:
    """Say which labelled samples there are, and which of them judge."""
    task = downstream_of(experiment)
    sides = (("training", labelled.train), ("validation", labelled.val), ("test", labelled.test))
    left_out = "".join(_left_out("downstream", task.keep, part, f"the {side}") for side, part in sides if part)
    tested = f", tested on {labelled.test.num_samples:,} of split {task.test_split}" if labelled.test else ""
    where = f"fold {task.fold} of {task.num_folds}" if task.num_folds else f"split {task.val_split}"
    return [
        _size("labelled shards", labelled.shards) + left_out,
        f"fine-tuning: trained on {labelled.train.num_samples:,} samples of {len(labelled.patients):,} patients of "
        f"split {task.train_split}, judged by {labelled.val.num_samples:,} samples of {where}{tested}",
    ]


def _probe(experiment: Experiment) -> str:
    from orchestrator.runs.probe import probe_set  # it brings scikit-learn, which other dry runs need not wait for

    samples = probe_set(experiment)
    known = len(samples.shards.class_names)
    return f"probe: trained on {len(samples.train):,} samples, judged by {len(samples.val):,}, {known} classes"


def _samples(course: Course) -> list[str]:
    """Say which shards a stage is fed, and where there are several, how many of its samples are theirs."""
    lines, sets, shares = [], course.experiment.data_of(course.stage), course.samples.shares
    for data, one, share in zip(sets, course.samples.components, shares, strict=True):
        seen = f", {share:.0%} of what is seen" if len(shares) > 1 else ""
        lines.append(_size("shards", one.shards) + seen + _left_out("data", data.keep, one.selection))
    return lines


def _size(name: str, shards: ShardSet) -> str:
    return f"{name} {shards.digest[:12]}: {shards.num_samples:,} samples, {shards.num_bytes / 2**20:,.0f} MiB on disk"


def _left_out(part: str, keep: Keep, selection: Selection, of: str = "its split") -> str:
    if not selection.num_left_out:
        return ""
    return f"; {part}.keep leaves out {selection.num_left_out:,} of {of} ({keep.describe(selection.left_out_by)})"
