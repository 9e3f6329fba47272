"""Finetune: train an encoder, pretrained or not, on one downstream task, and score it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.train import Checkpoint
from safetensors.torch import save_file

from data.shards.index import ShardSet
from data.shards.writer import write_atomically
from methods.base import Method
from methods.downstream import TASKS, Task
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.config.parts import Downstream
from orchestrator.config.weights import WeightsFile
from orchestrator.direction import TEST, is_detail
from orchestrator.feed import stream
from orchestrator.feed.plan import FeedPlan, SetPlan
from orchestrator.judging.cases import CASES, joined, to_parquet
from orchestrator.judging.validation import CONFUSIONS, PREDICTIONS, Rhythm, Validation
from orchestrator.runs.held_out import score_held_out
from orchestrator.runs.labelled import LabelledSamples, downstream_of, labelled_samples
from orchestrator.runs.model import record_of
from orchestrator.runs.network import (
    NETWORK,
    NETWORK_CARD,
    build_network,
    changes_of,
    outline_network,
    prepare,
    transfer_of,
)
from orchestrator.runs.plans import feed_plan, training_plan
from orchestrator.runs.pretrain import PretrainingResult
from orchestrator.runs.run import Caption, Run
from orchestrator.runs.trivial import trivial_scores
from orchestrator.terminal.progress import phase
from orchestrator.training import checkpoint as checkpoints
from orchestrator.training.batch_norm import check_batch_norm
from orchestrator.training.extents import check_extents
from orchestrator.training.loop import Plan, Trainee
from orchestrator.training.ray_train import Job, launch

STAGE = "finetune"
PREVIEWED_SAMPLES = 4


@dataclass(frozen=True)
class FinetuningResult:
    """A finished fine-tuning: its run's folder, its key, and the scores of its best checkpoint.

    ``test/...`` are those on the test split, if it has one.
    """

    folder: Path
    key: str
    scores: dict[str, float]


def finetune(
    experiment: Experiment,
    pretrained: PretrainingResult | None = None,
    parent: Path | None = None,
    row: str | None = None,
) -> FinetuningResult:
    """Fine-tune the encoder of a pretraining, or a new one, and return its scores on the validation split.

    Without a pretraining, or after one that trains nothing and starts from no file (``scratch``), the encoder's
    initial weights are drawn from ``downstream.seed``. The same fine-tuning continues where it stopped, or is
    returned at once if it is done. ``parent`` is the folder of the run that it belongs to, by default the
    pretraining's; ``row`` is the row of the table that it is run for. Raises ValueError if it cannot work (before
    anything starts) and RunError if it failed.
    """
    trained = pretrained if experiment.hands_over else None
    with phase("checking that encoder, task and labelled samples fit"):
        labelled = check(experiment)
    key = experiment.finetune_key(trained.key if trained else "scratch", labelled.shards.digest)
    folder = Path(experiment.home) / experiment.name / f"finetune-{key}"
    run = Run(folder, experiment, kind="finetune", key=key, parent=parent or (trained.folder if trained else None))
    with run.claimed():
        if (done := run.result()) is not None:
            return FinetuningResult(folder, key, done["scores"])
        with connection.connected():
            connection.preflight(experiment.resources_of(downstream_of(experiment)))
            with run.opened(_caption(experiment, trained, row), [labelled.shards], _params(experiment, trained)):
                scores = _train(experiment, trained.encoder if trained else None, labelled, run)
                return FinetuningResult(folder, key, scores)


def check(experiment: Experiment) -> LabelledSamples:
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
                "ingest them with the recipe of the pretraining's shards, or name the part of the encoder that takes "
                "them (downstream.part)"
            )
    shards.check_files()
    if experiment.hands_over and task.encoder:
        transfer_of(experiment)  # refuses changes that weights depend on
    network = outline_network(experiment, labelled)
    check_extents(network, labelled.train, task.section)
    plan_of(experiment, labelled)  # refuses milestones beyond the budget
    network.check_volumes(sliced=not shards.rows["volume"].equals(shards.rows["sample_id"]))
    check_batch_norm(experiment, task, network, lambda: feed_of(experiment, labelled, plan_of(experiment, labelled)))
    return labelled


def plan_of(experiment: Experiment, labelled: LabelledSamples) -> Plan:
    """Turn the task's budget into steps."""
    return training_plan(experiment, downstream_of(experiment), labelled.train.num_samples, labelled.shards.digest)


def feed_of(experiment: Experiment, labelled: LabelledSamples, plan: Plan) -> FeedPlan:
    """Plan the feed of labelled samples for the fine-tuning."""
    task, shards = downstream_of(experiment), labelled.shards
    labelled_set = SetPlan(shards.uri, shards.digest, task.train_split, labelled.patients, task.keep)
    return feed_plan(experiment, task, plan, (labelled_set,), TASKS[task.task.name].needs)


def _train(experiment: Experiment, encoder: str | None, labelled: LabelledSamples, run: Run) -> dict[str, float]:
    plan = plan_of(experiment, labelled)
    feed = feed_of(experiment, labelled, plan)
    if experiment.tracking.pictures:
        with phase("drawing the crops of the first samples"):
            run.picture("views-finetune.png", drawn_views(experiment, labelled.shards, feed))
    job = Job(
        folder=run.folder,
        stage=STAGE,
        storage=run.storage,
        plan=plan,
        feed=feed,
        build=partial(build_trainee, experiment, encoder),
        resources=experiment.resources_of(downstream_of(experiment)),
        keep_best=True,
    )
    for remark in (experiment.idle_workers(downstream_of(experiment)), plan.schedule.doubt()):
        run.remark(remark)
    if encoder and (changed := changes_of(experiment)):
        run.remark(f"{changed}: of the pretrained encoder, {transfer_of(experiment)}")
    with run.stage(STAGE, plan.total_steps, rhythm_of(experiment, labelled).due) as follow:
        best = launch(job, follow, run.remark)
    with phase("collecting the best network"):
        exported = _collect(Checkpoint(best.uri), run)
    trivial = trivial_scores(experiment, labelled, labelled.val)
    scores: dict[str, float] = {**best.state["best"], **trivial, "best_step": best.step}
    tested = _test(experiment, labelled, best.uri, run) if labelled.test else {}
    run.tracker.summary({name: value for name, value in tested.items() if not is_detail(name)})
    run.finish({"scores": scores | tested}, scores, exported, record_of(run.folder, scores | tested))
    return scores | tested


def _test(experiment: Experiment, labelled: LabelledSamples, best: str, run: Run) -> dict[str, float]:
    """Score the best checkpoint on the test split, and add its cases to the run's; return ``test/...``."""
    assert labelled.test is not None, "there is a test split to score"
    with phase("scoring the best network on the test split"):
        found = score_held_out(experiment, best)
    cases, tested = run.folder / CASES, to_parquet("test", found.cases)
    write_atomically(cases, joined([*([cases.read_bytes()] if cases.exists() else []), tested]))
    for remark in found.remarks:
        run.remark(f"test: {remark}")
    metrics = found.metrics | trivial_scores(experiment, labelled, labelled.test)
    return {f"{TEST}{name}": value for name, value in metrics.items()}


def build_trainee(experiment: Experiment, encoder: str | None) -> Trainee:
    """Build network and validation; runs in every worker."""
    labelled = labelled_samples(downstream_of(experiment))
    method = build_network(experiment, labelled.shards, encoder)
    prepare(method, experiment, labelled)
    validation = validation_of(experiment, labelled)
    card = _card(experiment, labelled, method)
    export = partial(_export, card, lambda: _judged(validation))
    return Trainee(method, validation, export=export)


def _judged(validation: Validation) -> dict[str, bytes]:
    """Return the files of the newest validation, by name."""
    cases = {CASES: to_parquet("validation", validation.cases)} if validation.cases else {}
    return {**validation.drawn, **cases}


def validation_of(experiment: Experiment, labelled: LabelledSamples) -> Validation:
    """Build the validation that the task asks for."""
    rhythm = rhythm_of(experiment, labelled)
    return Validation(labelled.shards, labelled.val.row_ids, rhythm, pictures=experiment.tracking.pictures)


def rhythm_of(experiment: Experiment, labelled: LabelledSamples) -> Rhythm:
    """Return when the task is validated."""
    task = downstream_of(experiment)
    return Rhythm(
        steps_per_epoch=task.budget.steps_per_epoch(labelled.train.num_samples),
        every_epochs=task.evaluate_every_epochs,
        dense_from=task.evaluate_every_epoch_from,
        patience_epochs=task.patience_epochs,
    )


def _card(experiment: Experiment, labelled: LabelledSamples, method: Task) -> dict[str, Any]:
    task = downstream_of(experiment)
    return {
        "encoder": experiment.downstream_encoder.model_dump(mode="json"),
        "task": task.task.model_dump(mode="json"),
        **method.card(),
        "digest": labelled.shards.digest,
        "recipe": labelled.shards.recipe,
        "seed": task.seed,
        "trained_on": labelled.counts,
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
    """Copy the best checkpoint's network and cases into the run's folder, log its pictures, and return the cases."""
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
    return [cases] if cases.exists() else []


def drawn_views(experiment: Experiment, shards: ShardSet, plan: FeedPlan) -> bytes:
    """Return a picture, as a PNG, of the first samples' crops over the stored samples."""
    from orchestrator.judging.pictures import draw_views

    method = build_network(experiment, shards, None)
    batch = stream.first_samples(plan, PREVIEWED_SAMPLES)
    with torch.no_grad():
        views = method.views(batch, batch.rng(plan.seed))
    return draw_views(batch, views)


def _caption(experiment: Experiment, trained: PretrainingResult | None, row: str | None) -> Caption:
    task = downstream_of(experiment)
    start = _pretrained_by(experiment) if trained else "scratch"
    seeds = f"seeds {experiment.seed} (pretraining) and {task.seed}" if trained else f"seed {task.seed}"
    return Caption(
        title=f"{row or start}: fine-tuning, {seeds}",
        description=(
            f"{task.task.name.capitalize()}, {f'pretrained by {start}' if trained else 'not pretrained'}. `best/...` "
            f"are the metrics of the best checkpoint on {validated_on(task)}"
            f"{f', `test/...` on split {task.test_split}' if task.test_split else ''}. Artifacts: "
            "`pictures/predictions.png` shows truth and prediction, `pictures/views-finetune.png` what it was "
            "trained on; `cases.parquet` is the score on each case. Its model is the best checkpoint's network."
        ),
        seed=f"{experiment.seed}, {task.seed}" if trained else str(task.seed),
        row=row,
    )


def _pretrained_by(experiment: Experiment) -> str:
    """Name the methods that trained the encoder, or the file that it was read from."""
    if experiment.trains:
        return "+".join(stage.method.name for stage in experiment.pretraining)
    starts = [stage.start for stage in experiment.pretraining]
    return ", ".join(f"weights {Path(start.weights).name}" for start in starts if isinstance(start, WeightsFile))


def validated_on(task: Downstream) -> str:
    """Name the samples that the best checkpoint is chosen by."""
    return f"fold {task.fold} of {task.num_folds}" if task.num_folds else f"split {task.val_split}"


def _params(experiment: Experiment, trained: PretrainingResult | None) -> dict[str, Any]:
    # MLflow refuses to change a param; where and on what a run is continued may change.
    elsewhere = dict.fromkeys(("home", "health", "probe", "resources", "tracking"), True)
    tree = json.loads(experiment.model_dump_json(exclude={**elsewhere, "downstream": {"resources"}}))
    return {**tree, "pretrained": trained.key if trained else "scratch"}
