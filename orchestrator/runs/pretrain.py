"""Pretrain: run the stages of an experiment, one after the other, and keep the resulting encoder."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.train import Checkpoint

from data.shards.index import Selection, ShardSet
from data.shards.writer import write_atomically
from methods import METHODS
from methods.base import Method
from methods.encoders import ENCODERS, Encoder
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import Stage
from orchestrator.feed import stream
from orchestrator.feed.stream import FeedPlan
from orchestrator.judging import pictures
from orchestrator.judging.health import Evenly, HealthWatch, spread_out
from orchestrator.runs.run import RESULT, Caption, Run
from orchestrator.terminal.progress import phase
from orchestrator.training import checkpoint as checkpoints
from orchestrator.training.batch_norm import check_batch_norm
from orchestrator.training.extents import check_extents
from orchestrator.training.loop import Plan, Trainee, Watch
from orchestrator.training.optimiser import Schedule
from orchestrator.training.outline import outline_method, outline_of
from orchestrator.training.ray_train import Job, launch

PREVIEWED_SAMPLES = 4


@dataclass(frozen=True)
class Pretrained:
    """A finished pretraining: its run's folder, its key, and the address from which workers read its encoder."""

    folder: Path
    key: str
    encoder: str


def pretrain(experiment: Experiment, parent: Path | None = None, row: str | None = None) -> Pretrained:
    """Run the stages that are not done yet and return the pretrained encoder.

    The same experiment on the same shards continues where it stopped, or is returned at once if it is done.
    ``parent`` is the folder of the run that it belongs to, and ``row`` is the row of the table that it is run for.
    Raises ValueError if it cannot work (before anything starts) and RunError if it failed.
    """
    with phase(f"reading the index of {experiment.data.shards}"):
        shards = ShardSet.open(experiment.data.shards)
        selection = experiment.data.selected(shards)
    with phase("checking that encoder, method and shards fit"):
        check(experiment, shards, selection)
    key, folder = experiment.pretrain_key(shards.digest), folder_of(experiment, shards.digest)
    run = Run(folder, experiment, kind="pretrain", key=key, parent=parent)
    with run.claimed():
        if (done := run.result()) is not None:
            return Pretrained(folder, key, run.located(done["encoder"]))
        with connection.connected():
            for stage in experiment.pretraining:
                connection.preflight(experiment.resources_of(stage))
            with run.opened(_caption(experiment, row), shards, _params(experiment)):
                encoder = _run_stages(experiment, shards, selection, run)
                return Pretrained(folder, key, encoder)


def folder_of(experiment: Experiment, digest: str) -> Path:
    """Return the folder of an experiment's pretraining on the shards with this digest."""
    return Path(experiment.home) / experiment.name / f"pretrain-{experiment.pretrain_key(digest)}"


def check(experiment: Experiment, shards: ShardSet, selection: Selection) -> None:
    """Raise ValueError if encoder, method and shards do not fit one another."""
    encoder = outline_of(experiment.encoder)
    if encoder.spatial_dims != shards.spatial_dims:
        raise ValueError(
            f"encoder.spatial_dims is {encoder.spatial_dims}, the shards hold {shards.spatial_dims}D samples; set "
            f"encoder.spatial_dims={shards.spatial_dims}, or ingest with a recipe for {encoder.spatial_dims}D"
        )
    if encoder.in_channels != shards.num_channels:
        raise ValueError(
            f"encoder.in_channels is {encoder.in_channels}, the shards hold {shards.num_channels} channels; "
            f"set encoder.in_channels={shards.num_channels}"
        )
    if experiment.probe:
        from orchestrator.judging.probing import ProbeSet

        probed = ProbeSet.open(experiment.probe)
        probed.check(encoder)
        probed.shards.check_files()
    if not (folder_of(experiment, shards.digest) / RESULT).exists():
        shards.check_files()
    for stage in experiment.pretraining:
        method = outline_method(stage.method, experiment.encoder)
        check_extents(method, selection, experiment.data.part)
        if method.trains:
            stage_plan(experiment, stage, shards, selection.num_samples)  # refuses milestones beyond the budget
            check_batch_norm(experiment, stage, method, partial(_feed_of, experiment, stage, shards, selection))


def build_encoder(experiment: Experiment) -> Encoder:
    """Build the encoder with its initial weights drawn from the experiment's seed."""
    torch.manual_seed(experiment.seed)
    return ENCODERS[experiment.encoder.name](experiment.encoder)


def stage_plan(experiment: Experiment, stage: Stage, shards: ShardSet, num_samples: int) -> Plan:
    """Turn a stage's budget into steps."""
    training = experiment.training
    return Plan(
        schedule=Schedule.of(stage.optimiser, stage.budget, num_samples),
        stream=checkpoints.Stream(shards.digest, experiment.seed, stage.budget.batch_size),
        precision=training.precision,
        num_chunks=experiment.shares_of(stage).num_chunks,
        sync_batch_norm=training.sync_batch_norm,
        report_every_steps=training.report_every_steps,
        report_every_s=training.report_every_s,
        checkpoint_every_steps=training.checkpoint_every_steps,
    )


def stage_feed(experiment: Experiment, stage: Stage, shards: ShardSet, plan: Plan) -> FeedPlan:
    """Plan the feed of a stage's samples, from its first step to its last."""
    resources = experiment.resources_of(stage)
    return FeedPlan(
        shards=shards.uri,
        digest=shards.digest,
        split=experiment.data.split,
        keep=experiment.data.keep,
        seed=experiment.seed,
        batch_size=stage.budget.batch_size,
        world=resources.workers,
        first_step=0,
        last_step=plan.total_steps,
        num_readers=resources.readers,
        reader_resource=resources.reader_resource,
    )


def _feed_of(experiment: Experiment, stage: Stage, shards: ShardSet, selection: Selection) -> FeedPlan:
    return stage_feed(experiment, stage, shards, stage_plan(experiment, stage, shards, selection.num_samples))


def _run_stages(experiment: Experiment, shards: ShardSet, selection: Selection, run: Run) -> str:
    encoder: str | None = None
    for index, stage in enumerate(experiment.pretraining):
        if not METHODS[stage.method.name].trains:
            continue
        plan = stage_plan(experiment, stage, shards, selection.num_samples)
        feed_plan = stage_feed(experiment, stage, shards, plan)
        if experiment.tracking.pictures:
            with phase("drawing the views of the first samples"):
                _preview(experiment, stage, feed_plan, run)
        job = Job(
            folder=run.folder,
            stage=stage.name,
            storage=run.storage,
            plan=plan,
            feed=feed_plan,
            build=partial(_build, experiment, index, encoder, plan.total_steps),
            resources=experiment.resources_of(stage),
        )
        run.remark(experiment.idle_workers(stage))
        with run.stage(stage.name, plan.total_steps) as follow:
            encoder = launch(job, follow, run.remark).uri
    with phase("collecting the encoder"):
        exported = _export(experiment, shards, encoder, run.folder)
    run.finish({"encoder": run.recorded(encoder or str(exported))}, {}, [exported])
    return encoder or str(exported)


def _build(experiment: Experiment, index: int, start: str | None, total_steps: int) -> Trainee:
    """Build a stage's method on its encoder, and its watches; runs in every worker."""
    stage, shards = experiment.pretraining[index], ShardSet.open(experiment.data.shards)
    encoder = build_encoder(experiment)
    if start is not None:
        with Checkpoint(start).as_directory() as folder:
            checkpoints.load_encoder(Path(folder), encoder)
    method = METHODS[stage.method.name](stage.method, encoder)
    card = encoder_card(experiment, shards.digest, shards.recipe)
    return Trainee(method, watches=watches_of(experiment, shards, total_steps), export=partial(_export_from, card))


def watches_of(experiment: Experiment, shards: ShardSet, total_steps: int) -> tuple[Watch, ...]:
    """Return the watches that measure the encoder while a stage trains it."""
    health, probe = experiment.health, experiment.probe
    rows = spread_out(experiment.data.selected(shards).row_ids, health.samples)
    watches: list[Watch] = []
    if health.times and len(rows) > 1:
        watches.append(HealthWatch(shards, rows, Evenly(health.times, total_steps)))
    if probe and probe.times:
        from orchestrator.judging.probing import ProbeSet, ProbeWatch  # imports scikit-learn, which few workers need

        watches.append(ProbeWatch(ProbeSet.open(probe), Evenly(probe.times, total_steps)))
    return tuple(watches)


def encoder_card(experiment: Experiment, digest: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Describe an exported encoder: its architecture, its training data and its training."""
    return {
        "encoder": experiment.encoder.model_dump(mode="json"),
        "stages": [stage.model_dump(mode="json") for stage in experiment.pretraining],
        "seed": experiment.seed,
        "digest": digest,
        "recipe": recipe,
    }


def _export_from(card: dict[str, Any], folder: Path, method: Method) -> None:
    checkpoints.export_encoder(folder, method.encoder, card)


def _export(experiment: Experiment, shards: ShardSet, encoder: str | None, folder: Path) -> Path:
    """Copy the encoder of the last stage into the run's folder; for scratch, write the initial encoder."""
    target = folder / "encoder"
    target.mkdir(exist_ok=True)
    if encoder is None:
        checkpoints.export_encoder(
            target, build_encoder(experiment), encoder_card(experiment, shards.digest, shards.recipe)
        )
        return target
    with Checkpoint(encoder).as_directory() as source:
        for name in (checkpoints.ENCODER, checkpoints.ENCODER_CARD):
            write_atomically(target / name, (Path(source) / name).read_bytes())
    return target


def _preview(experiment: Experiment, stage: Stage, plan: FeedPlan, run: Run) -> None:
    """Log a picture of the first samples' views, with the views' boxes drawn over the stored samples."""
    method = METHODS[stage.method.name](stage.method, build_encoder(experiment))
    batch = next(stream.local_batches(plan, rank=0)).take(PREVIEWED_SAMPLES)
    with torch.no_grad():
        views = method.views(batch, batch.rng(experiment.seed))
    run.picture(f"views-{stage.name}.png", pictures.draw_views(batch, views))


def _params(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that decide the result: MLflow's params never change, other settings may."""
    return json.loads(
        experiment.model_dump_json(exclude={"home", "downstream", "health", "probe", "resources", "tracking"})
    )


def _caption(experiment: Experiment, row: str | None) -> Caption:
    methods = "+".join(stage.method.name for stage in experiment.pretraining)
    return Caption(
        title=f"pretrain {row or methods}, seed {experiment.seed}",
        description=(
            f"Pretraining by {methods}. Its fine-tunings are its child runs. Artifacts: `pictures/` shows the first "
            "samples with the boxes of their views; `encoder/` is the pretrained encoder."
        ),
        row=row,
    )
