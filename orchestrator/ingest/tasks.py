"""The bundles of an ingest as tasks of Ray Data. A bundle whose reader dies is halved until the study is found."""

import logging
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.data
from ray.data import DataContext, TaskPoolStrategy
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayTaskError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning

from data.files import StorageError
from data.limits import limited
from data.quarantine import BadStudy
from data.shards.bundles import Bundle, BundleJob, preprocess, run_bundle, volume_id
from data.sources import Study

_DEATHS = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
_ONCE_MORE = 1  # a reader may die of its machine: what it did is tried twice, never without end


def run_bundles(job: BundleJob, bundles: Sequence[Bundle], readers: int | None) -> Iterator[int]:
    """Run bundles in parallel; yield the number of each when it is done.

    Studies travel with their own task, so a worker never holds the studies of other tasks. A study that ends its
    reader is quarantined and the rest of its bundle is written. Raises a task's StorageError if a bucket fails.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # dead readers are counted here; what a task raises, it returns
    items = [{"bundle": pickle.dumps(bundle)} for bundle in bundles]
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # max_retries has no named parameter yet
        numbers = ray.data.from_items(items, override_num_blocks=len(items)).map(
            partial(_run_one, job),
            num_cpus=1,
            compute=TaskPoolStrategy(size=min(len(items), readers or _cores())),
            max_retries=_ONCE_MORE,
        )
    # Ray Data prints its plans and what died on the driver's terminal; the bar says what a person needs.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    dead = {bundle.number: bundle for bundle in bundles}
    for row in numbers.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
        del dead[row["number"]]
        yield row["number"]
    for bundle in dead.values():
        _run_without_fatal(job, bundle)
        yield bundle.number


def _run_without_fatal(job: BundleJob, bundle: Bundle) -> None:
    """Find the studies of a bundle whose reader died twice that end their reader, and run it without them."""
    spared = {*bundle.fatal, *bundle.excluded, *bundle.written()}
    wanted = [study for study in bundle.studies if volume_id(job.key, study) not in spared]
    found = find_fatal(wanted, partial(_can_be_read, job))
    fatal = (*bundle.fatal, *(volume_id(job.key, study) for study in found))
    running = ray.remote(num_cpus=1, max_retries=_ONCE_MORE)(_run_one)
    try:
        row = ray.get(running.remote(job, {"bundle": pickle.dumps(replace(bundle, fatal=fatal))}))
    except _DEATHS as error:
        raise RuntimeError(
            f"bundle {bundle.number}: the process that reads it ended four times ({type(error).__name__}), though "
            f"{len(wanted) - len(found)} of the {len(wanted)} studies that it reads can be read one by one; "
            "expected it to end once it is written; give the machine more memory or ask for fewer readers, "
            "and run the same command again: finished work is kept"
        ) from None
    if row["error"]:
        raise pickle.loads(row["error"])


def find_fatal(studies: Sequence[Study], can_be_read: Callable[[Sequence[Study]], bool]) -> list[Study]:
    """Return the studies that end their reader, of some that together ended it: by halving, and none of a chance."""
    if len(studies) < 2:
        return [study for study in studies if not can_be_read([study])]
    middle = len(studies) // 2
    halves = [half for half in (studies[:middle], studies[middle:]) if len(half) == 1 or not can_be_read(half)]
    return [study for half in halves for study in find_fatal(half, can_be_read)]


def _can_be_read(job: BundleJob, studies: Sequence[Study]) -> bool:
    """Tell whether a process can read studies to their end; a single one gets a second process."""
    reading = ray.remote(num_cpus=1, max_retries=_ONCE_MORE if len(studies) == 1 else 0)(_read)
    try:
        ray.get(reading.remote(job, pickle.dumps(list(studies))))
    except _DEATHS:
        return False
    except RayTaskError as error:
        if isinstance(error.cause, StorageError):
            raise StorageError(*error.cause.args) from None
        raise
    return True


def _cores() -> int:
    """Return how many tasks run at once: a cluster's CPUs; on one machine, its real cores, not the declared ones."""
    return int(ray.cluster_resources().get("CPU", 1)) if len(ray.nodes()) > 1 else os.cpu_count() or 1


def _run_one(job: BundleJob, row: dict[str, Any]) -> dict[str, Any]:
    """Run a bundle; return its number, and the pickled error that it raised or nothing."""
    bundle: Bundle = pickle.loads(row["bundle"])
    try:
        with _silent():
            run_bundle(job, bundle)
    except Exception as error:  # noqa: BLE001 (Ray Data would count it among the dead readers)
        return {"number": bundle.number, "error": _packed(error)}
    return {"number": bundle.number, "error": b""}


def _read(job: BundleJob, studies: bytes) -> None:
    with _silent():
        for study in pickle.loads(studies):
            try:
                with limited(job.seconds_per_study):
                    preprocess(job.recipe, study)
            except BadStudy:
                continue


def _packed(error: Exception) -> bytes:
    """Return an error for the driver, with the place where it was raised."""
    place = "".join(traceback.format_tb(error.__traceback__))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (an error class may ask for anything to be made again)
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"raised by a reader:\n{place}")
    return pickle.dumps(error)


@contextmanager
def _silent() -> Generator[None]:
    """Drop what libraries print: ITK and GDCM name files and pydicom shows values, and Ray keeps workers' output."""
    kept = os.dup(1), os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in (*kept, nothing):
            os.close(descriptor)
