"""The bundles of an ingest as tasks of Ray Data."""

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import ray.data
from ray.data import DataContext, TaskPoolStrategy
from ray.exceptions import RayTaskError

from data.bundles import Bundle, Job, run_bundle
from data.files import StorageError


def run_bundles(job: Job, bundles: Sequence[Bundle], readers: int | None) -> Iterator[int]:
    """Run bundles in parallel; yield the number of each when it is done.

    Studies travel with their own task, so a worker never holds the studies of other tasks. Raises a task's
    StorageError if a bucket fails.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    items = [{"bundle": pickle.dumps(bundle)} for bundle in bundles]
    with DataContext.current(context):
        numbers = ray.data.from_items(items, override_num_blocks=len(items)).map(
            partial(_run_one, job), num_cpus=1, compute=TaskPoolStrategy(size=min(len(items), readers or _cores()))
        )
    # Ray Data prints its plans and the place of its logs on the driver's terminal; the bar says what a person needs.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        for row in numbers.iter_rows():
            yield row["number"]
    except RayTaskError as error:
        if isinstance(error.cause, StorageError):
            raise StorageError(*error.cause.args) from None
        raise


def _cores() -> int:
    """Return how many tasks run at once: a cluster's CPUs; on one machine, its real cores, not the declared ones."""
    return int(ray.cluster_resources().get("CPU", 1)) if len(ray.nodes()) > 1 else os.cpu_count() or 1


def _run_one(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    bundle: Bundle = pickle.loads(row["bundle"])
    with _silent():
        run_bundle(job, bundle)
    return {"number": bundle.number}


@contextmanager
def _silent() -> Iterator[None]:
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
