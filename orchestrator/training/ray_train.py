"""Launch: run one stage on Ray Train, from its newest checkpoint, if any, to its end."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, get_device
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from data.files import is_file, join, read_bytes
from data.shards.writer import write_atomically
from data.views.batch import Batch
from orchestrator import stop
from orchestrator.cluster import connection
from orchestrator.config.computing import Resources
from orchestrator.feed import stream
from orchestrator.feed.stream import FeedPlan
from orchestrator.history import HELD, HISTORY, USAGE, HistoryWriter, Tail
from orchestrator.stop import RunError
from orchestrator.training.controller import Trainer
from orchestrator.training.finite import NonFiniteError
from orchestrator.training.loop import Plan, Trainee, train
from orchestrator.training.resume import SavedCheckpoint, StageCheckpoints, name_of, remaining
from orchestrator.training.usage import Usage
from orchestrator.training.world import World

CONTROLLER_FAILURES = 3
KEPT = 2  # checkpoints; with ``keep_best``, the best ones, and the newest
FOLLOW_EVERY_S = 1.0

Follow = Callable[[list[dict[str, Any]]], None]
Say = Callable[[str], None]


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


def launch(job: Job, follow: Follow, say: Say) -> SavedCheckpoint:
    """Train a stage and return its checkpoint: the best by score if ``keep_best``, else the newest.

    ``follow`` gets the history as it grows. A stage that was interrupted continues from its last whole checkpoint,
    and ``say`` tells a person so. Raises RunError if training failed, and StoppedError if this process was asked to
    end its trainings.
    """
    progress, path = StageCheckpoints(job.uri), job.folder / HISTORY
    begin = path.stat().st_size if path.exists() else 0
    _fetch_history(job)
    newest = _resume(job, progress, say)
    if (done := newest.step if newest else 0) < job.plan.last_step:
        _raise_stopped(job, done)
        stop.unmark(job.uri)
        _fit_followed(job, progress, partial(_pass_on, Tail(path, begin), follow), say)
        _keep_history(job)
        _raise_fatal(Tail(path, begin))
        newest = progress.find().newest
        _raise_stopped(job, newest.step if newest else 0)
    else:
        follow(Tail(path, begin).read())
    assert newest is not None, "training ends with a checkpoint"
    return progress.best(newest) if job.keep_best else newest


def _keep_history(job: Job) -> None:
    """Copy the run's history beside checkpoints stored elsewhere: curves and objectives are read from it."""
    if "://" in job.storage:
        write_atomically(join(job.storage, HISTORY), (job.folder / HISTORY).read_bytes())


def _fetch_history(job: Job) -> None:
    """Fetch that copy if this machine has lost the run's folder."""
    kept, path = join(job.storage, HISTORY), job.folder / HISTORY
    if "://" in job.storage and not path.exists() and is_file(kept):
        write_atomically(path, read_bytes(kept))


def _resume(job: Job, progress: StageCheckpoints, say: Say) -> SavedCheckpoint | None:
    """Return the checkpoint from which a stage continues, if any, once the history holds every step up to it."""
    found = progress.find()
    for damage in found.damages:
        say(f"stage {job.stage}: {damage}; the checkpoint before it is used")
    progress.repair()
    if found.newest is None:
        return None
    HistoryWriter(job.folder, job.stage).complete(progress.held_steps())
    if found.newest.step < job.plan.last_step:
        say(
            f"stage {job.stage}: goes on from step {found.newest.step} of {job.plan.last_step}, checkpoint "
            f"{found.newest.name}"
        )
    return found.newest


def _fit(job: Job, progress: StageCheckpoints) -> None:
    resources = job.resources
    connection.set_up_train()
    per_worker = {"CPU": resources.cpus_per_worker, **({"GPU": 1.0} if resources.gpu else {})}
    trainer = Trainer(
        _work,
        train_loop_config={"job": job, "progress": progress},
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpu, resources_per_worker=per_worker
        ),
        datasets={"train": partial(remaining, progress, job.feed)} if job.feed.num_readers else None,
        dataset_config=stream.data_config(),
        run_config=RunConfig(
            name=job.stage,
            storage_path=job.storage,
            failure_config=FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=KEPT, checkpoint_score_attribute="score" if job.keep_best else None
            ),
            callbacks=[HistoryWriter(job.folder, job.stage)],
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise RunError(_words(job, error)) from error
    except RayActorError as error:
        raise RunError(
            f"stage {job.stage}: the process of Ray Train's controller died: {str(error).splitlines()[0]} The same "
            "command goes on from the last checkpoint"
        ) from error


def _work(config: dict[str, Any]) -> None:
    """Train on one rank; Ray Train runs this in each worker."""
    job: Job = config["job"]
    progress: StageCheckpoints = config["progress"]
    context = ray.train.get_context()
    device = get_device()
    assert isinstance(device, torch.device)
    world = World(context.get_world_rank(), context.get_world_size(), device)
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads(), round(job.resources.cpus_per_worker)))
    newest = progress.find().newest
    batches, report = partial(_batches, job, world), partial(_report, world, Usage(device))
    # One rank looks and tells the others: each look is a request if the storage is remote.
    asked_to_stop = (lambda: bool(stop.marked(job.uri))) if world.rank == 0 else (lambda: False)
    try:
        with Checkpoint(newest.uri).as_directory() if newest else nullcontext() as folder:
            start = Path(folder) if folder else None
            ray.train.report({HELD: progress.held_steps() if world.rank == 0 else []})
            train(job.build(), job.plan, batches, world, report, start, asked_to_stop)
    except NonFiniteError as error:
        # The same batch would fail again, so the run's retries are not spent on it.
        ray.train.report({"fatal": str(error)})


def _batches(job: Job, world: World, first_step: int) -> Iterator[Batch]:
    plan = replace(job.feed, first_step=first_step)
    shard = ray.train.get_dataset_shard("train") if plan.num_readers else None
    return stream.batches(shard, plan, world.rank, world.device)


def _report(world: World, usage: Usage, metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
    step = metrics["history"][-1]["step"] + 1
    metrics = {**metrics, USAGE: usage.sample()} if world.rank == 0 else metrics
    if checkpoint is None:
        ray.train.report(metrics if world.rank == 0 else {})
        return
    ray.train.report(metrics, Checkpoint.from_directory(checkpoint), checkpoint_dir_name=name_of(step))


def _fit_followed(job: Job, progress: StageCheckpoints, follow: Callable[[], None], say: Say) -> None:
    """Train; meanwhile follow the history, and pass a request to stop on to the workers.

    Train runs in a thread of its own: in the main thread it would answer Ctrl-C itself and end without a checkpoint.
    """
    with stop.awaited(), ThreadPoolExecutor(1) as pool:
        fitting, marked = pool.submit(_fit, job, progress), False
        try:
            while not wait([fitting], FOLLOW_EVERY_S).done:
                follow()
                stop.raise_if_insisted()
                if stop.requested() and not marked:
                    say(stop.asked())
                    stop.mark(job.uri)
                    marked = True
        except stop.Interruption:
            connection.leave()  # so that nothing is trained after the history is followed for the last time
            follow()
            raise
        except Exception:
            stop.mark(job.uri)
            wait([fitting])
            raise
        follow()
    fitting.result()


def _pass_on(tail: Tail, follow: Follow) -> None:
    follow(tail.read())


def _raise_stopped(job: Job, done: int) -> None:
    stop.raise_if_insisted()  # Ctrl-C was pressed again while the last checkpoint was saved
    if stop.requested() and done < job.plan.last_step:
        raise stop.StoppedError(
            f"stage {job.stage}: stopped after step {done} of {job.plan.last_step}, as asked; the same command "
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
