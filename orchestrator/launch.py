"""Launch: one stage on Ray Train, from the newest checkpoint that there is, to its end."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import ray.train
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from data.batch import Batch
from data.files import join
from orchestrator import cluster, feed, stop
from orchestrator.checkpoint import is_intact
from orchestrator.config import Resources
from orchestrator.failure import RunError
from orchestrator.feed import FeedPlan
from orchestrator.history import HISTORY, HistoryWriter, Tail
from orchestrator.loop import NonFiniteError, Plan, Trainee, World, train
from orchestrator.resume import SNAPSHOT, Progress, remaining

CONTROLLER_FAILURES = 3
FOLLOW_EVERY_S = 1.0


@dataclass(frozen=True)
class Job:
    """One stage of a run.

    folder    the run's folder on the driver's machine, where its history is written
    storage   where checkpoints go: a folder or s3://, reachable from every node
    build     makes the trainee; it is called in every worker
    keep_best keep the checkpoint with the best score beside the newest
    """

    folder: Path
    stage: str
    storage: str
    plan: Plan
    feed: FeedPlan
    build: Callable[[], Trainee]
    resources: Resources
    keep_best: bool = False

    @property
    def uri(self) -> str:
        """The stage's own folder in ``storage``."""
        return join(self.storage, self.stage)


def launch(job: Job, follow: Callable[[list[dict[str, Any]]], None]) -> str:
    """Train a stage and return its checkpoint's address: the best scored where ``keep_best``, else the newest.

    ``follow`` is handed the history as it grows. A stage that was interrupted goes on where its last checkpoint
    stands. Raises RunError in words, and StoppedError where this process was asked to end its trainings.
    """
    progress = _progress(job)
    if (done := progress.step()) < job.plan.total_steps:
        _raise_stopped(job, done)
        stop.unmark(job.uri)
        with stop.on_sigterm(), _followed(job, follow) as tail:
            _fit(job, progress)
            _raise_fatal(tail)
        _raise_stopped(job, progress.step())
    result = Result.from_path(job.uri)
    assert result.checkpoint is not None, "training ends with a checkpoint"
    return _address(job, best_scored(result.best_checkpoints or []) if job.keep_best else result.checkpoint)


def best_scored(checkpoints: list[tuple[Checkpoint, dict[str, Any]]]) -> Checkpoint:
    """Return the checkpoint with the best score; those between two evaluations have none."""
    scored = [(metrics["score"], checkpoint) for checkpoint, metrics in checkpoints if "score" in metrics]
    return max(scored, key=lambda pair: pair[0])[1]


def _address(job: Job, checkpoint: Checkpoint) -> str:
    """Return where a checkpoint of a stage lies, for any process; its own path lacks ``s3://``."""
    return join(job.uri, PurePosixPath(checkpoint.path).name)


def _fit(job: Job, progress: Progress) -> None:
    resources = job.resources
    cluster.set_up_train()
    per_worker = {"CPU": resources.cpus_per_worker, **({"GPU": 1.0} if resources.gpu else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "progress": progress},
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpu, resources_per_worker=per_worker
        ),
        datasets={"train": partial(remaining, progress, job.feed)},
        dataset_config=feed.data_config(),
        run_config=RunConfig(
            name=job.stage,
            storage_path=job.storage,
            failure_config=FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="score" if job.keep_best else None
            ),
            callbacks=[HistoryWriter(job.folder, job.stage)],
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise RunError(_words(job, error)) from error


def _work(config: dict[str, Any]) -> None:
    """Train on one rank; this is what Ray Train runs in each worker."""
    job: Job = config["job"]
    progress: Progress = config["progress"]
    context = ray.train.get_context()
    device = get_device()
    assert isinstance(device, torch.device)
    world = World(context.get_world_rank(), context.get_world_size(), device)
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads(), round(job.resources.cpus_per_worker)))
    checkpoint = progress.newest()
    batches, report = partial(_batches, job, world), partial(_report, world)
    # One rank looks, and tells the others: each look is a request where the storage is remote.
    asked_to_stop = partial(stop.marked, job.uri) if world.rank == 0 else (lambda: False)
    try:
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            start = Path(folder) if folder else None
            train(job.build(), job.plan, batches, world, report, start, asked_to_stop)
    except NonFiniteError as error:
        # The same batch would fail again: do not spend the run's retries on it.
        ray.train.report({"fatal": str(error)})


def _batches(job: Job, world: World, first_step: int) -> Iterator[Batch]:
    plan = replace(job.feed, first_step=first_step)
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None, "the trainer was given a dataset of this name"
    return feed.batches(shard, plan, world.rank, world.device)


def _report(world: World, metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
    step = metrics["history"][-1]["step"] + 1
    if checkpoint is None:
        ray.train.report(metrics if world.rank == 0 else {})
        return
    ray.train.report(metrics, Checkpoint.from_directory(checkpoint), checkpoint_dir_name=f"step_{step:09d}")


@contextmanager
def _followed(job: Job, follow: Callable[[list[dict[str, Any]]], None]) -> Iterator[Tail]:
    """Hand the history to ``follow`` from a thread while the body runs; yield a tail from where it began."""
    path = job.folder / HISTORY
    begin = path.stat().st_size if path.exists() else 0
    tail, over = Tail(path, begin), threading.Event()

    def watch() -> None:
        marked = False
        while not over.wait(FOLLOW_EVERY_S):
            follow(tail.read())
            if stop.requested() and not marked:
                stop.mark(job.uri)
                marked = True
        follow(tail.read())

    thread = threading.Thread(target=watch, name="follow-history", daemon=True)
    thread.start()
    try:
        yield Tail(path, begin)
    finally:
        over.set()
        thread.join()


def _raise_stopped(job: Job, done: int) -> None:
    if stop.requested() and done < job.plan.total_steps:
        raise stop.StoppedError(
            f"stage {job.stage}: stopped after step {done} of {job.plan.total_steps}, as asked; the same command "
            "goes on from there"
        )


def _raise_fatal(tail: Tail) -> None:
    for line in tail.read():
        if "fatal" in line:
            raise RunError(line["fatal"])


def _words(job: Job, error: TrainingFailedError) -> str:
    """Name the first cause of a failed stage in one line."""
    causes: list[BaseException] = [error]
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        causes = list(error.worker_failures.values())
    elif isinstance(error, ControllerError):
        causes = [error.controller_failure]
    cause: BaseException = causes[0]
    while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
        cause = inner
    lines = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    return (
        f"stage {job.stage}: failed {job.resources.max_failures + 1} times, last with "
        f"{type(cause).__name__}: {lines[-1].strip()}"
    )


def _progress(job: Job) -> Progress:
    """Return how far the stage is; where a kill cut off Ray's list of checkpoints, from the newest intact one.

    Ray Train writes that list in place; the checkpoints themselves are complete before it does. In a bucket a file
    is there whole or not at all.
    """
    stage = Path(job.uri)
    if "://" in job.storage or not (stage / SNAPSHOT).exists():
        return Progress(job.uri)
    try:
        json.loads((stage / SNAPSHOT).read_text())
    except json.JSONDecodeError:
        (stage / SNAPSHOT).rename(stage / (SNAPSHOT + ".broken"))
    else:
        return Progress(job.uri)
    intact = (folder for folder in sorted(stage.glob("step_*"), reverse=True) if is_intact(folder))
    return Progress(job.uri, next((str(folder) for folder in intact), None))
