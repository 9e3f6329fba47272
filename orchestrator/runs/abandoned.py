"""Abandoned: MLflow runs whose process was killed before it could close them."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from orchestrator import stop
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.lock import is_free
from orchestrator.runs.run import tracker_of
from orchestrator.tracking.outbox import OUTBOX, posted


@contextmanager
def closing_abandoned(experiment: Experiment) -> Generator[None]:
    """On an interrupt in the body, end the processes that it started and close the MLflow runs they leave open."""
    try:
        yield
    except stop.Interruption:
        connection.leave()
        for folder in abandoned(Path(experiment.home) / experiment.name):
            tracker = tracker_of(folder, experiment)
            tracker.finish("KILLED")
            tracker.flush(force=True)
        raise


def abandoned(place: Path) -> list[Path]:
    """Return the run folders below a place whose MLflow run is open although no process works on them."""
    folders = [path.parent for path in sorted(place.rglob(OUTBOX))]
    return [folder for folder in folders if _is_open(folder) and is_free(folder)]


def _is_open(folder: Path) -> bool:
    return posted(folder, ["start", "finish"])[-1]["op"] == "start"
