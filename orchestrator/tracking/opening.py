"""Opening: MLflow's client for an address.

Processes that start at the same time in a new home take turns to make its store, so that all of their runs are in it.
A store that was moved with its home still keeps artifacts beside itself.
"""

import logging
import sqlite3
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path

from mlflow import MlflowClient
from mlflow.store.db import utils as databases

from orchestrator.lock import alone
from orchestrator.tracking.store import sqlite_file

LOCK = "mlflow.lock"
ARTIFACTS = "artifacts"
# Where MLflow's tables name places of artifacts, besides those of experiments.
PLACES = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
BUSY_S = 20.0
# A dead database is noticed in seconds, as a dead server is; the outbox does the retrying.
databases.MAX_RETRY_COUNT = 2
# We give MLflow's reasons once, in one line; it would print them with a stack, and announce each table of a new
# store.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@lru_cache(maxsize=16)
def client_of(uri: str) -> MlflowClient:
    """Return a client; create the home's store if it does not exist yet.

    Raises whatever MLflow, SQLAlchemy, SQLite or the disk raise; see ``hindrance.py``.
    """
    if (file := sqlite_file(uri)) is None:
        return MlflowClient(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file.parent / LOCK):
        with closing(sqlite3.connect(file, timeout=BUSY_S)) as database:
            database.execute("BEGIN IMMEDIATE")  # MLflow would try for minutes to write what cannot be written
            database.rollback()
        client = MlflowClient(uri)
        _remove_undecoded_folders(uri, file)
        _follow_home(file)
    return client


def existing(uri: str) -> MlflowClient | None:
    """Return a client for reading; None if the home's store does not exist."""
    file = sqlite_file(uri)
    return client_of(uri) if file is None or file.is_file() else None


def artifacts_of(uri: str, experiment: str) -> str | None:
    """Return where an experiment's artifacts go: beside an SQLite store; a server decides for itself."""
    file = sqlite_file(uri)
    return (file.parent / ARTIFACTS / experiment).as_uri() if file else None


def _remove_undecoded_folders(uri: str, file: Path) -> None:
    """Remove the empty folders that MLflow makes because it does not decode the path in an address."""
    undecoded = Path(uri.removeprefix("sqlite:///")).parent
    for folder in (undecoded, *undecoded.parents):
        if folder in file.parents:
            return
        with suppress(OSError):
            folder.rmdir()


def _follow_home(file: Path) -> None:
    """Correct the addresses of artifacts beside the store after the home was moved."""
    with closing(sqlite3.connect(file, timeout=BUSY_S)) as database:
        known = database.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        for experiment_id, name, before in known:
            now, own = (file.parent / ARTIFACTS / name).as_uri(), (Path("/") / ARTIFACTS / name).as_uri()
            if before in (None, now) or not before.endswith(own.removeprefix("file://")):
                continue
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (now, experiment_id)
            )
            for table, column in PLACES:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, len(before) + 1, f"{before}/"),
                )
        database.commit()
