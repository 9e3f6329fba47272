"""Cluster: join Ray or start it on this machine, and refuse jobs that cannot be placed."""

import gc
import itertools
import logging
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import worker

from data.files import check_writable
from orchestrator import stop
from orchestrator.cluster import launcher_file, startup
from orchestrator.config.computing import Resources
from orchestrator.terminal import progress

# For the tasks with which Ray Data itself lists and splits, beside the readers.
DATA_CPUS = 1.0
LOCAL_STORE_SHARE = 0.15
LOCAL_STORE_MOST_BYTES = 8 * 2**30


class PlacementError(ValueError):
    """A job that the cluster can never place; the message holds the arithmetic."""


@contextmanager
def connected() -> Generator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names, or start Ray here; shut down only a Ray that was started here."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    phase = progress.phase(f"joining the Ray cluster at {address}" if address else "starting Ray")
    with phase, _own_handler(), _deaf_children():
        _connect()
    try:
        yield
    finally:
        leave()


def in_worker() -> bool:
    """Tell whether Ray started this process: it may die while the job lives on, which then holds what it held."""
    return ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def leave() -> None:
    """Leave the cluster; if Ray was started here, all its processes have ended when this returns."""
    node, worker._global_node = worker._global_node, None  # pyright: ignore[reportPrivateUsage]  # no other way
    started = _processes(node.all_processes) if node else []
    ray.shutdown()
    if node and node.is_head():
        node.destroy_external_storage()
        # Asking them to end, as ``ray.shutdown`` does, takes a second for each, because they do not react.
        node.kill_all_processes(check_alive=False)
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _processes(all_processes: dict[str, Any]) -> list[psutil.Process]:
    """Return the processes of a Ray, and all processes that they started."""
    found: list[psutil.Process] = []
    for info in itertools.chain.from_iterable(all_processes.values()):
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(info.process.pid)
            found += [own, *own.children(recursive=True)]
    return found


@contextmanager
def _own_handler() -> Generator[None]:
    """Keep this process's SIGTERM handler while the body runs: Ray would replace it with an exit."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        stop.request(signal.SIGTERM)
        raise stop.Interruption from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _deaf_children() -> Generator[None]:
    """Shield processes that start while the body runs, and their children, from signals that ask this one to end.

    Slurm and systemd send SIGTERM to every process of a job, and a closing terminal sends SIGHUP to every process
    that it started. If Ray ended then, it could not save what this process waits for. The shielded processes end with
    this process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _connect() -> None:
    # A Ray that starts here writes its token, its logs and the voxels that it spills with the process's umask.
    umask = os.umask(0o077)
    set_up_train()
    if not progress.console.is_terminal:
        # Ray prints its own remarks in colour, which a log would record as control characters.
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if not os.environ.get("RAY_ADDRESS"):
        # This saves one process per training: nobody announces that this machine will go away.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Workers that are started in advance lack our runtime environment, and are never used.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # Ray looks for its workers' logs ten times a second in order to print them, but here it prints none.
        os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
        os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "60")
        # Ray takes four processes per core for a mistake and warns on the terminal; a training here has ten.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(_logical_cpus()))
        # Ray starts a task again for ever that was ended because memory was short, though it may be too large itself.
        os.environ.setdefault("RAY_task_oom_retries", "5")
    try:
        if address := os.environ.get("RAY_ADDRESS"):
            with startup.joining(address):
                ray.init(logging_level=logging.ERROR, log_to_driver=False, runtime_env=_runtime_env(umask))
            return
        with startup.starting():
            ray.init(
                address="local",
                num_cpus=_logical_cpus(),
                object_store_memory=int(
                    min(LOCAL_STORE_MOST_BYTES, LOCAL_STORE_SHARE * psutil.virtual_memory().total)
                ),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env=_runtime_env(umask),
            )
    finally:
        os.umask(umask)


def set_up_train() -> None:
    """Set the environment variables that Ray Train reads in each process that starts a training, if they are unset.

    Ray Train passes them on to its controller and its workers.
    """
    joined = os.environ.get("RAY_ADDRESS")
    settings = {
        # Cloud nodes take minutes to start.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1200" if joined else "120",
        # A worker's folder would otherwise be a Ray session folder, where relative paths mean nothing.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # A report waits for the controller's next look at its workers: with short steps that is most of the time.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _logical_cpus() -> int:
    """Return the CPUs that a Ray started here may hand out.

    Readers and controllers mostly wait, and a job that asks for more than the cores of a laptop would otherwise hang
    instead of running slower.
    """
    return max(8, 2 * (os.cpu_count() or 1))


def _runtime_env(umask: int) -> dict[str, Any]:
    """Return the environment of every worker process: our packages, one thread per pool, Train's settings, the umask.

    Workers inherit the umask of the Ray that starts them; the shards and run files that they write are the person's.
    """
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # Trials of a table or a sweep are trained by processes of the cluster, which lack what was set in this one.
    train = {name: value for name, value in os.environ.items() if name.startswith(("RAY_TRAIN_", "RAY_CHDIR_"))}
    thresholds = gc.get_threshold()
    return {
        "env_vars": {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **threads, **train},
        # The first, as in this process, before Ray imports what a training takes.
        "worker_process_setup_hook": lambda: (gc.set_threshold(*thresholds), os.umask(umask)),
    }


def preflight(resources: Resources) -> None:
    """Raise PlacementError if the workers and readers can never run at the same time on this cluster.

    Raises StorageError if checkpoints could not be written.
    """
    have = capacity()
    need_cpu = _cpus(resources)
    have_cpu = have.get("CPU", 0.0)
    if need_cpu > have_cpu:
        raise PlacementError(
            f"resources: {resources.workers} workers x {resources.cpus_per_worker:g} CPU + {resources.readers} "
            f"readers + {_reading_ahead(resources):g} for reading ahead = {need_cpu:g} CPUs, the cluster has "
            f"{have_cpu:g}; lower resources.workers, resources.cpus_per_worker or resources.readers, or join a "
            "larger cluster (RAY_ADDRESS)"
        )
    if resources.gpu and resources.workers > have.get("GPU", 0.0):
        raise PlacementError(
            f"resources: {resources.workers} workers x 1 GPU, the cluster has {have.get('GPU', 0.0):g} GPUs; "
            "lower resources.workers, set resources.gpu=false to train on CPUs, or join a larger cluster"
        )
    if resources.reader_resource and resources.readers > have.get(resources.reader_resource, 0.0):
        raise PlacementError(
            f"resources: {resources.readers} readers x 1 {resources.reader_resource}, the cluster has "
            f"{have.get(resources.reader_resource, 0.0):g}; lower resources.readers, leave resources.reader_resource "
            "out to read on any node, or start nodes that have it (cluster.yaml: resources)"
        )
    if resources.storage:
        check_writable(resources.storage, "resources.storage")


def capacity() -> dict[str, float]:
    """Return the resources of the cluster's nodes, or of the nodes that its autoscaler may start."""
    have = ray.cluster_resources()
    grown = launcher_file.capacity_here() if os.environ.get("RAY_ADDRESS") else {}
    return {name: max(have.get(name, 0.0), grown.get(name, 0.0)) for name in {*have, *grown}}


def fitting(resources: Resources) -> int:
    """Return how many such jobs fit on this cluster at once, at least one: ``preflight`` refuses larger jobs."""
    have = capacity()
    jobs = have.get("CPU", 0.0) // _cpus(resources)
    if resources.gpu:
        jobs = min(jobs, have.get("GPU", 0.0) // resources.workers)
    return max(1, int(jobs))


def concurrency(jobs: Iterable[Resources], asked: int | None) -> int:
    """Return how many jobs to run at once: as many as requested, but no more than fit of the largest of ``jobs``.

    The CPUs of a Ray that was started here are logical ones: without GPUs one job keeps them busy. Raises as
    ``preflight`` does.
    """
    most = []
    for resources in jobs:
        preflight(resources)
        logical = not os.environ.get("RAY_ADDRESS") and not resources.gpu
        most.append(min(fitting(resources), asked or (1 if logical else fitting(resources))))
    return min(most)


def _cpus(resources: Resources) -> float:
    return resources.workers * resources.cpus_per_worker + resources.readers + _reading_ahead(resources)


def _reading_ahead(resources: Resources) -> float:
    return DATA_CPUS if resources.readers else 0.0


def hardware() -> dict[str, str]:
    """Describe the cluster for the record of a run."""
    have = ray.cluster_resources()
    return {
        "python": sys.version.split()[0],
        "ray": ray.__version__,
        "nodes": str(len(ray.nodes())),
        "cluster_cpus": f"{have.get('CPU', 0):g}",
        "cluster_gpus": f"{have.get('GPU', 0):g}",
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
    }
