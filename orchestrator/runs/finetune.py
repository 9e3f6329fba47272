"""Finetune: train an encoder, pretrained or not, on one downstream task, and score it."""

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from ray.train import Checkpoint
from safetensors.torch import save_file

from data.shards.classes import pad_classes
from data.shards.index import Selection, ShardSet
from data.shards.writer import write_atomically
from data.splits import folds, label_fraction
from methods import METHODS
from methods.base import Method
from methods.downstream import TASKS, Task
from methods.encoders import ENCODERS, Encoder
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import Downstream, EncoderConfig
from orchestrator.feed import stream
from orchestrator.feed.stream import FeedPlan
from orchestrator.judging import pictures
from orchestrator.judging.cases import CASES, to_parquet
from orchestrator.judging.validation import CONFUSIONS, PREDICTIONS, Rhythm, Validation
from orchestrator.runs.pretrain import Pretrained
from orchestrator.runs.run import Caption, Run
from orchestrator.terminal.progress import phase
from orchestrator.training import checkpoint as checkpoints
from orchestrator.training.batch_norm import check_batch_norm
from orchestrator.training.extents import check_extents
from orchestrator.training.loop import Plan, Trainee
from orchestrator.training.optimiser import Schedule
from orchestrator.training.outline import outline, outline_of
from orchestrator.training.ray_train import Job, launch

STAGE = "finetune"
NETWORK, NETWORK_CARD = "network.safetensors", "network.json"
# Which patients a label fraction or a fold holds does not change with the seed: repeats differ only in training.
LABEL_SEED = 0
PREVIEWED_SAMPLES = 4


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tuning: its run's folder, its key, and the scores of its best checkpoint."""

    folder: Path
    key: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Labelled:
    """The labelled samples of a fine-tuning: those for training and those for validation."""

    shards: ShardSet
    train: Selection
    val: Selection
    patients: tuple[str, ...]


def finetune(
    experiment: Experiment, pretrained: Pretrained | None = None, parent: Path | None = None, row: str | None = None
) -> Finetuned:
    """Fine-tune the encoder of a pretraining, or a new one, and return its scores on the validation split.

    Without a pretraining, or after one that trains nothing (``scratch``), the encoder's initial weights are drawn
    from ``downstream.seed``. The same fine-tuning continues where it stopped, or is returned at once if it is done.
    ``parent`` is the folder of the run that it belongs to, by default the pretraining's; ``row`` is the row of the
    table that it is run for. Raises ValueError if it cannot work (before anything starts) and RunError if it failed.
    """
    trained = pretrained if any(METHODS[stage.method.name].trains for stage in experiment.pretraining) else None
    with phase("checking that encoder, task and labelled samples fit"):
        labelled = check(experiment)
    key = experiment.finetune_key(trained.key if trained else "scratch", labelled.shards.digest)
    folder = Path(experiment.home) / experiment.name / f"finetune-{key}"
    run = Run(folder, experiment, kind="finetune", key=key, parent=parent or (trained.folder if trained else None))
    with run.claimed():
        if (done := run.result()) is not None:
            return Finetuned(folder, key, done["scores"])
        with connection.connected():
            connection.preflight(experiment.resources_of(downstream_of(experiment)))
            with run.opened(_caption(experiment, trained, row), labelled.shards, _params(experiment, trained)):
                scores = _train(experiment, trained.encoder if trained else None, labelled, run)
                return Finetuned(folder, key, scores)


def downstream_of(experiment: Experiment) -> Downstream:
    """Return the experiment's downstream task; raise ValueError if it has none."""
    if experiment.downstream is None:
        raise ValueError(f"experiment {experiment.name}: no downstream task; add downstream: with task and shards")
    return experiment.downstream


def labelled_samples(task: Downstream) -> Labelled:
    """Select labelled samples of (a fraction of) the training patients, and of the validation patients."""
    shards, having = ShardSet.open(task.shards), TASKS[task.task.name].needs
    everyone = _patients(shards, task.train_split, task)
    held_out = folds(everyone, task.num_folds, LABEL_SEED)[task.fold] if task.num_folds else frozenset[str]()
    learnt = {patient: stratum for patient, stratum in everyone.items() if patient not in held_out}
    patients = tuple(sorted(label_fraction(learnt, task.label_fraction, LABEL_SEED)))
    val = tuple(sorted(held_out or _patients(shards, task.val_split, task)))
    return Labelled(
        shards,
        task.kept(shards, task.train_split, patients, having),
        task.kept(shards, task.train_split if held_out else task.val_split, val, having),
        patients,
    )


def _patients(shards: ShardSet, split: str, task: Downstream) -> Mapping[str, Hashable]:
    """Return a split's labelled patients with the classes that their samples have; raise ValueError for none."""
    selection = task.kept(shards, split, having=TASKS[task.task.name].needs)
    if selection.num_samples == 0:
        raise ValueError(
            f"shards {task.shards}: 0 samples with a {TASKS[task.task.name].needs.replace('_', ' ')} in split "
            f"{split!r}, expected at least 1; see `raydiology shards show`, and choose downstream.train_split and "
            "downstream.val_split"
        )
    return shards.patients(selection)


def build_network(experiment: Experiment, shards: ShardSet, encoder_path: str | None) -> Task:
    """Build the task's network: initial weights from ``downstream.seed``, the encoder's from its saved weights."""
    task = downstream_of(experiment)
    torch.manual_seed(task.seed)
    config = experiment.downstream_encoder
    encoder = ENCODERS[config.name](config)
    if encoder_path is not None:
        with Checkpoint(encoder_path).as_directory() as folder:
            pretrained = config.model_copy(update={"in_channels": experiment.encoder.in_channels})
            _load_encoder(Path(folder), encoder, pretrained)
    return _network(task, encoder, shards)


def outline_network(experiment: Experiment, labelled: Labelled) -> Task:
    """Return the task's network without weights, prepared for its samples, to be read."""
    task, config = downstream_of(experiment), experiment.downstream_encoder
    names = (*labelled.shards.label_names.items(), *labelled.shards.class_names.items())
    held = (task.frozen_levels, _held_until(task, labelled.train.num_samples))
    seen = [hashlib.sha256(classes.tobytes()).hexdigest() for classes in _classes(labelled)]

    def build() -> Task:
        network = _network(task, deepcopy(outline_of(config)), labelled.shards)
        prepare(network, experiment, labelled)
        return network

    return outline(("task", task.task.model_dump_json(), config, names, held, *seen), build)


def _network(task: Downstream, encoder: Encoder, shards: ShardSet) -> Task:
    kind: Any = TASKS[task.task.name]
    return kind(task.task, encoder, shards.label_names if kind.needs == "label_map" else shards.class_names)


def _load_encoder(folder: Path, encoder: Encoder, config: EncoderConfig) -> None:
    """Load the weights of an encoder of ``config``; weights whose channels differ keep their initial values."""
    if encoder.in_channels == config.in_channels:
        checkpoints.load_encoder(folder, encoder)
        return
    pretrained = ENCODERS[config.name](config)
    checkpoints.load_encoder(folder, pretrained)
    own = encoder.state_dict()
    fitting = {name: value for name, value in pretrained.state_dict().items() if value.shape == own[name].shape}
    encoder.load_state_dict({**own, **fitting})


def check(experiment: Experiment) -> Labelled:
    """Return the labelled samples; raise ValueError if encoder, task and samples do not fit.

    This needs no pretraining, so that a fine-tuning that cannot work is refused before its pretraining starts.
    """
    task = downstream_of(experiment)
    labelled = labelled_samples(task)
    shards = labelled.shards
    for field, have in (("spatial_dims", shards.spatial_dims), ("in_channels", shards.num_channels)):
        given = getattr(experiment.downstream_encoder, field)
        if given != have:
            raise ValueError(
                f"encoder.{field} is {given}, the labelled shards have {have}; set encoder.{field}={have}, "
                "or ingest them with the recipe of the pretraining's shards"
            )
    shards.check_files()
    network = outline_network(experiment, labelled)
    check_extents(network, labelled.train, task.part)
    check_batch_norm(experiment, task, network, lambda: feed_of(experiment, labelled, plan_of(experiment, labelled)))
    return labelled


def prepare(network: Task, experiment: Experiment, labelled: Labelled) -> None:
    """Show a network the classes of its samples; freeze the encoder's levels that the task names."""
    task = downstream_of(experiment)
    network.see_classes(*_classes(labelled))
    if task.frozen_levels != 0:
        levels = None if task.frozen_levels == "all" else task.frozen_levels
        network.freeze(levels, _held_until(task, labelled.train.num_samples))


def _classes(labelled: Labelled) -> tuple[Int64[np.ndarray, "n m"], Int64[np.ndarray, "k l"]]:
    """Return the classes of the samples that are trained on and judged on, padded with -1."""
    classes = labelled.shards.rows["classes"]
    train, val = (pad_classes(classes.take(part.row_ids)) for part in (labelled.train, labelled.val))
    return train, val


def _held_until(task: Downstream, num_samples: int) -> float:
    """Return the progress in [0, 1] until which levels are frozen."""
    if task.frozen_epochs is None:
        return 1.0
    steps = task.budget.epochs_to_steps(task.frozen_epochs, num_samples)
    return min(1.0, steps / task.budget.total_steps(num_samples))


def plan_of(experiment: Experiment, labelled: Labelled) -> Plan:
    """Turn the task's budget into steps."""
    task, training = downstream_of(experiment), experiment.training
    num_samples = labelled.train.num_samples
    return Plan(
        schedule=Schedule(
            task.optimiser,
            total_steps=task.budget.total_steps(num_samples),
            warmup_steps=task.budget.epochs_to_steps(task.optimiser.warmup_epochs, num_samples),
        ),
        stream=checkpoints.Stream(labelled.shards.digest, task.seed, task.budget.batch_size),
        precision=training.precision,
        num_chunks=experiment.shares_of(task).num_chunks,
        sync_batch_norm=training.sync_batch_norm,
        report_every_steps=training.report_every_steps,
        report_every_s=training.report_every_s,
        checkpoint_every_steps=training.checkpoint_every_steps,
    )


def feed_of(experiment: Experiment, labelled: Labelled, plan: Plan) -> FeedPlan:
    """Plan the feed of labelled samples for the fine-tuning."""
    task = downstream_of(experiment)
    resources = experiment.resources_of(task)
    return FeedPlan(
        shards=labelled.shards.uri,
        digest=labelled.shards.digest,
        split=task.train_split,
        keep=task.keep,
        patients=labelled.patients,
        having=TASKS[task.task.name].needs,
        with_labels=TASKS[task.task.name].needs == "label_map",
        seed=task.seed,
        batch_size=task.budget.batch_size,
        world=resources.workers,
        last_step=plan.total_steps,
        num_readers=resources.readers,
        reader_resource=resources.reader_resource,
    )


def _train(experiment: Experiment, encoder: str | None, labelled: Labelled, run: Run) -> dict[str, float]:
    plan = plan_of(experiment, labelled)
    feed_plan = feed_of(experiment, labelled, plan)
    if experiment.tracking.pictures:
        with phase("drawing the crops of the first samples"):
            _preview(experiment, labelled.shards, feed_plan, run)
    job = Job(
        folder=run.folder,
        stage=STAGE,
        storage=run.storage,
        plan=plan,
        feed=feed_plan,
        build=partial(_build, experiment, encoder),
        resources=experiment.resources_of(downstream_of(experiment)),
        keep_best=True,
    )
    run.remark(experiment.idle_workers(downstream_of(experiment)))
    with run.stage(STAGE, plan.total_steps, rhythm_of(experiment, labelled).due) as follow:
        best = launch(job, follow, run.remark)
    with phase("collecting the best network"):
        exported = _collect(Checkpoint(best.uri), run)
    scores = {**best.state["best"], "best_step": best.step}
    run.finish({"scores": scores}, scores, exported)
    return scores


def _build(experiment: Experiment, encoder: str | None) -> Trainee:
    """Build network and validation; runs in every worker."""
    labelled = labelled_samples(downstream_of(experiment))
    method = build_network(experiment, labelled.shards, encoder)
    prepare(method, experiment, labelled)
    validation = validation_of(experiment, labelled)
    card = _card(experiment, labelled.shards, method)
    export = partial(_export, card, lambda: _judged(validation))
    return Trainee(method, validation, export=export)


def _judged(validation: Validation) -> dict[str, bytes]:
    """Return the files of the newest validation, by name."""
    cases = {CASES: to_parquet("validation", validation.cases)} if validation.cases else {}
    return {**validation.drawn, **cases}


def validation_of(experiment: Experiment, labelled: Labelled) -> Validation:
    """Build the validation that the task asks for."""
    rhythm = rhythm_of(experiment, labelled)
    return Validation(labelled.shards, labelled.val.row_ids, rhythm, pictures=experiment.tracking.pictures)


def rhythm_of(experiment: Experiment, labelled: Labelled) -> Rhythm:
    """Return when the task is validated."""
    task = downstream_of(experiment)
    return Rhythm(
        steps_per_epoch=task.budget.steps_per_epoch(labelled.train.num_samples),
        every_epochs=task.evaluate_every_epochs,
        dense_from=task.evaluate_every_epoch_from,
        patience_epochs=task.patience_epochs,
    )


def _card(experiment: Experiment, shards: ShardSet, method: Task) -> dict[str, Any]:
    task = downstream_of(experiment)
    return {
        "encoder": experiment.downstream_encoder.model_dump(mode="json"),
        "task": task.task.model_dump(mode="json"),
        **method.card(),
        "digest": shards.digest,
        "recipe": shards.recipe,
        "seed": task.seed,
    }


def _export(card: dict[str, Any], judged: Callable[[], dict[str, bytes]], folder: Path, method: Method) -> None:
    """Add encoder, network and the validation's files; the network's keys are those of MONAI's own class."""
    assert isinstance(method, Task)
    checkpoints.export_encoder(folder, method.encoder, card)
    weights = {name: value.detach().cpu().contiguous() for name, value in method.network.state_dict().items()}
    save_file(weights, folder / NETWORK)
    (folder / NETWORK_CARD).write_text(json.dumps(card, indent=2, sort_keys=True))
    for name, content in judged().items():
        (folder / name).write_bytes(content)


def _collect(best: Checkpoint, run: Run) -> list[Path]:
    """Copy the best checkpoint's network and cases into the run's folder, and log its pictures; return the others."""
    target, cases = run.folder / "network", run.folder / CASES
    target.mkdir(exist_ok=True)
    with best.as_directory() as folder:
        for name in (NETWORK, NETWORK_CARD):
            write_atomically(target / name, (Path(folder) / name).read_bytes())
        for name in (PREDICTIONS, CONFUSIONS):
            if (Path(folder) / name).exists():
                run.picture(name, (Path(folder) / name).read_bytes())
        if (Path(folder) / CASES).exists():  # a run that an older version began may have a best checkpoint without
            write_atomically(cases, (Path(folder) / CASES).read_bytes())
    return [target, *([cases] if cases.exists() else [])]


def _preview(experiment: Experiment, shards: ShardSet, plan: FeedPlan, run: Run) -> None:
    """Log a picture of the first samples' crops, drawn over the stored samples."""
    method = build_network(experiment, shards, None)
    batch = next(stream.local_batches(replace(plan, batch_size=PREVIEWED_SAMPLES, world=1, last_step=1), rank=0))
    with torch.no_grad():
        views = method.views(batch, batch.rng(plan.seed))
    run.picture("views-finetune.png", pictures.draw_views(batch, views))


def _caption(experiment: Experiment, trained: Pretrained | None, row: str | None) -> Caption:
    task = downstream_of(experiment)
    start = "+".join(stage.method.name for stage in experiment.pretraining) if trained else "scratch"
    seeds = f"seeds {experiment.seed} (pretraining) and {task.seed}" if trained else f"seed {task.seed}"
    return Caption(
        title=f"finetune {row or start}, {seeds}",
        description=(
            f"{task.task.name.capitalize()}, {f'pretrained by {start}' if trained else 'not pretrained'}. `best/...` "
            f"are the metrics of the best checkpoint on {_validated_on(task)}. Artifacts: "
            "`pictures/predictions.png` shows truth and prediction, `pictures/views-finetune.png` what it was "
            "trained on; `network/` is the best checkpoint's network, `cases.parquet` its score on each case."
        ),
        row=row,
    )


def _validated_on(task: Downstream) -> str:
    return f"fold {task.fold} of {task.num_folds}" if task.num_folds else f"split {task.val_split}"


def _params(experiment: Experiment, trained: Pretrained | None) -> dict[str, Any]:
    # MLflow refuses to change a param; where and on what a run is continued may change.
    elsewhere = dict.fromkeys(("home", "health", "probe", "resources", "tracking"), True)
    tree = json.loads(experiment.model_dump_json(exclude={**elsewhere, "downstream": {"resources"}}))
    return {**tree, "pretrained": trained.key if trained else "scratch"}
