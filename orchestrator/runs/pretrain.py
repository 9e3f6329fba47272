"""Pretrain: run the stages of an experiment, one after the other, and keep the resulting encoder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.train import Checkpoint

from data.shards.index import ShardSet
from data.shards.writer import write_atomically
from methods.base import Method
from methods.encoders import Encoder
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import TRAINABLE
from orchestrator.config.weights import WeightsFile
from orchestrator.feed import stream
from orchestrator.judging.health import Evenly, HealthWatch, spread_out
from orchestrator.runs.course import Course, courses, digest_of, initial_encoder, part_of
from orchestrator.runs.model import record_of
from orchestrator.runs.run import RESULT, Caption, Run
from orchestrator.runs.segment import Segment, end_of, hand_over
from orchestrator.terminal.progress import phase
from orchestrator.training import checkpoint as checkpoints
from orchestrator.training.batch_norm import check_batch_norm
from orchestrator.training.extents import check_extents
from orchestrator.training.loop import Trainee, Watch
from orchestrator.training.outline import outline_of
from orchestrator.training.ray_train import Job, launch

PREVIEWED_SAMPLES = 4
PREFIX = "pretrain-"  # of a run's folder, before its key


@dataclass(frozen=True)
class PretrainingResult:
    """A finished pretraining: its run's folder, its key, and the address from which workers read its encoder."""

    folder: Path
    key: str
    encoder: str


def pretrain(
    experiment: Experiment, parent: Path | None = None, row: str | None = None, segment: Segment | None = None
) -> PretrainingResult:
    """Run the stages that are not done yet, or a segment of a single stage, and return the pretrained encoder.

    The same experiment on the same shards continues where it stopped, or is returned at once if it is done.
    ``parent`` is the folder of the run that it belongs to, and ``row`` is the row of the table that it is run for.
    Raises ValueError if it cannot work (before anything starts) and RunError if it failed.
    """
    with phase("checking that encoder, method and shards fit"):
        stages = check(experiment)
    folder = _folder(stages, segment)
    key = folder.name.removeprefix(PREFIX)
    run = Run(folder, experiment, kind="pretrain", key=key, parent=parent)
    with run.claimed():
        if (done := run.result()) is not None:
            return PretrainingResult(folder, key, run.located(done["encoder"]))
        with connection.connected():
            for stage in experiment.pretraining:
                connection.preflight(experiment.resources_of(stage))
            with run.opened(_caption(experiment, row), _read(stages), _params(experiment)):
                return PretrainingResult(folder, key, _run_stages(stages, run, segment))


def folder_of(experiment: Experiment, segment: Segment | None = None) -> Path:
    """Return the folder of an experiment's pretraining, or of its segment, on its shards as they are."""
    return _folder(courses(experiment), segment)


def _folder(stages: Sequence[Course], segment: Segment | None = None) -> Path:
    experiment = stages[0].experiment
    key = experiment.pretrain_key(digest_of(stages), segment.identity if segment else None)
    return Path(experiment.home) / experiment.name / f"{PREFIX}{key}"


def check(experiment: Experiment) -> list[Course]:
    """Open the stages; raise ValueError if encoders, methods and shards do not fit one another."""
    stages = courses(experiment)
    is_done = (_folder(stages) / RESULT).exists()
    for course in stages:
        _check_stage(course)
        if not is_done:
            for shards in course.samples.shard_sets:
                shards.check_files()
    if experiment.probe:
        from orchestrator.judging.probing import ProbeSet

        probed = ProbeSet.open(experiment.probe)
        probed.check(outline_of(experiment.pretrained_encoder))
        probed.shards.check_files()
    return stages


def _check_stage(course: Course) -> None:
    experiment, stage, method = course.experiment, course.stage, course.outline()
    _check_samples(course)
    _check_start(course)
    components = course.samples.components
    for place, one in enumerate(components):
        check_extents(method, one.selection, f"data.{place}" if len(components) > 1 else "data")
    _see_classes(course, method)
    if method.trains:
        assert course.plan, "refuses milestones beyond the budget"
        check_batch_norm(experiment, stage, method, lambda: course.feed)


def _see_classes(course: Course, method: Method) -> None:
    """Let a supervised pretraining see the classes of its samples; nothing is judged by others."""
    if method.needs is not None:
        classes = course.samples.classes
        method.see_classes(classes, classes)


def _check_samples(course: Course) -> None:
    """Raise ValueError where the shards hold other samples than the stage's method is fed."""
    encoder, shards = outline_of(course.encoder), course.samples
    fed, have = TRAINABLE[course.stage.method.name].takes(encoder), (shards.spatial_dims, shards.num_channels)
    if fed != (encoder.spatial_dims, encoder.in_channels) and fed != have:
        raise ValueError(
            f"method {course.stage.method.name} is fed {fed[0]}D samples of {fed[1]} channels, the shards hold "
            f"{have[0]}D samples of {have[1]}; choose other shards (data.shards), or ingest with another recipe"
        )
    if fed[0] != have[0]:
        raise ValueError(
            f"encoder.spatial_dims is {fed[0]}, the shards hold {have[0]}D samples; set "
            f"encoder.spatial_dims={have[0]}, or ingest with a recipe for {fed[0]}D"
        )
    if fed[1] != have[1]:
        raise ValueError(
            f"encoder.in_channels is {fed[1]}, the shards hold {have[1]} channels; set encoder.in_channels={have[1]}"
        )


def _check_start(course: Course) -> None:
    """Raise ValueError where what a stage takes over does not fit the encoder, or the part of it, that takes it."""
    experiment = course.experiment
    start = experiment.start_of(course.stage)
    if isinstance(start, WeightsFile):
        assert course.transfer, "refuses weights that do not fit"
        return
    own = outline_of(course.encoder)
    trained = {stage.name: experiment.encoder_of(stage) for stage in experiment.pretraining}
    for part, name in start.items():
        given = outline_of(trained[name]).state_dict()
        checkpoints.refuse_unmatched(given, part_of(own, part), f"stage {course.stage.name}, start from {name}")


def _read(stages: Sequence[Course]) -> list[ShardSet]:
    """Return the shards that the stages are fed, each once."""
    return list({shards.uri: shards for course in stages for shards in course.samples.shard_sets}.values())


def build_encoder(experiment: Experiment) -> Encoder:
    """Build the encoder that the pretraining exports, with its initial weights."""
    return initial_encoder(experiment, experiment.pretrained_encoder)


def _run_stages(stages: Sequence[Course], run: Run, segment: Segment | None) -> str:
    experiment, trained = stages[0].experiment, dict[str, str]()
    for course in stages:
        stage = course.stage
        if course.transfer:
            run.remark(course.start_said())
            run.keep(f"start-{stage.name}.txt", f"{course.start_said()}\n\n{course.transfer.every_key()}\n")
        if not course.trains:
            continue
        if experiment.tracking.pictures:
            with phase("drawing the views of the first samples"):
                run.picture(f"views-{stage.name}.png", drawn_views(course))
        plan = replace(course.plan, ends_at=segment.until if segment else None)
        job = Job(
            folder=run.folder,
            stage=stage.name,
            storage=run.storage,
            plan=plan,
            feed=replace(course.feed, last_step=plan.last_step),
            build=partial(build_trainee, experiment, course.index, dict(trained)),
            resources=experiment.resources_of(stage),
        )
        if segment and segment.source:
            hand_over(end_of(run.folder.parent / f"{PREFIX}{segment.source}"), job.uri)
        for remark in (experiment.idle_workers(stage), plan.schedule.doubt(), *course.doubts()):
            run.remark(remark)
        with run.stage(stage.name, plan.last_step) as follow:
            trained[stage.name] = launch(job, follow, run.remark).uri
    encoder = trained.get(stages[-1].stage.name)
    with phase("collecting the encoder"):
        exported = _export(stages[-1], encoder, run.folder)
    run.finish({"encoder": run.recorded(encoder or str(exported))}, {}, [], record_of(run.folder, {}))
    return encoder or str(exported)


def build_trainee(experiment: Experiment, index: int, before: Mapping[str, str]) -> Trainee:
    """Build a stage's method on its encoder, and its watches; runs in every worker."""
    course = Course.open(experiment, index)
    method = course.build(before)
    _see_classes(course, method)
    return Trainee(method, watches=watches_of(course), export=partial(_export_from, encoder_card(course)))


def watches_of(course: Course) -> tuple[Watch, ...]:
    """Return the watches that measure the encoder while a stage trains it."""
    health, probe = course.experiment.health, course.experiment.probe
    samples, total_steps = course.samples, course.plan.total_steps
    measured = spread_out(np.arange(samples.num_samples), health.samples)
    watches: list[Watch] = []
    if health.times and len(measured) > 1:
        watches.append(HealthWatch(tuple(samples.rows(measured)), Evenly(health.times, total_steps)))
    if probe and probe.times:
        from orchestrator.judging.probing import ProbeSet, ProbeWatch  # imports scikit-learn, which few workers need

        watches.append(ProbeWatch(ProbeSet.open(probe), Evenly(probe.times, total_steps)))
    return tuple(watches)


def encoder_card(course: Course) -> dict[str, Any]:
    """Describe an exported encoder: its architecture, its training data and its training."""
    return {
        "encoder": course.encoder.model_dump(mode="json"),
        "stages": [stage.model_dump(mode="json") for stage in course.experiment.pretraining],
        "seed": course.experiment.seed,
        "digest": course.samples.digest,
        "recipe": course.samples.recipe,
        "trained_on": {
            "samples": course.samples.num_samples,
            "patients": sum(one.shards.num_patients(one.selection) for one in course.samples.components),
        },
    }


def _export_from(card: dict[str, Any], folder: Path, method: Method) -> None:
    checkpoints.export_encoder(folder, method.encoder, card)


def _export(course: Course, encoder: str | None, folder: Path) -> Path:
    """Copy the encoder of the last stage into the run's folder; for scratch, write what it starts with."""
    target = folder / "encoder"
    target.mkdir(exist_ok=True)
    if encoder is None:
        checkpoints.export_encoder(target, course.build({}).encoder, encoder_card(course))
        return target
    with Checkpoint(encoder).as_directory() as source:
        for name in (checkpoints.ENCODER, checkpoints.ENCODER_CARD):
            write_atomically(target / name, (Path(source) / name).read_bytes())
    return target


def drawn_views(course: Course) -> bytes:
    """Return a picture, as a PNG, of the first samples' views, with the views' boxes over the stored samples."""
    from orchestrator.judging.pictures import draw_views

    method, seed = course.build(), course.feed.seed
    batch = stream.first_samples(course.feed, PREVIEWED_SAMPLES)
    with torch.no_grad():
        views = method.views(batch, batch.rng(seed))
    return draw_views(batch, views)


def _params(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that decide the result: MLflow's params never change, other settings may."""
    return json.loads(
        experiment.model_dump_json(exclude={"home", "downstream", "health", "probe", "resources", "tracking"})
    )


def _caption(experiment: Experiment, row: str | None) -> Caption:
    methods = "+".join(stage.method.name for stage in experiment.pretraining)
    return Caption(
        title=f"{row or methods}: pretraining, seed {experiment.seed}",
        description=(
            f"Pretraining by {methods}. Its fine-tunings are its child runs. Artifacts: `pictures/` shows the first "
            "samples with the boxes of their views. Its model is the pretrained encoder."
        ),
        seed=str(experiment.seed),
        row=row,
    )
