"""Submit: a command as a job on a Ray cluster, through Ray's job API; follow it, ask for its state, stop it.

The working directory travels as one zip of the files that ``orchestrator.cluster.package`` lists. The cluster's token
is read from where Ray looks for it. A stop is a SIGTERM, which makes trainings save a checkpoint and end
(``orchestrator.stop``).
"""

import asyncio
import logging
import os
import shlex
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import aiohttp
import requests
import yaml
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from data.files import shown
from orchestrator.cluster.package import Package
from orchestrator.cluster.startup import TOKEN_REMEDY
from orchestrator.config.yaml_text import parsed
from orchestrator.provenance import COMMIT_VARIABLE, JOB_VARIABLE, git_commit

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Ray kills a job this long after it was asked to stop, by default after 3 s. A large checkpoint takes minutes.
STOP_WAIT_S = 600
STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
POLL_S = 0.5
STOPPED_CODE = 143
# Set by ``orchestrator.cluster.connection`` for every worker; Ray refuses a variable that job and driver both set.
WORKERS_VARIABLES = ("PYTHONPATH", "PYTHONWARNINGS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class SubmitError(ValueError):
    """A job that cannot be submitted or asked about; the message says why and what to do."""


@dataclass(frozen=True)
class ClusterJob:
    """A job of a cluster, described for people."""

    id: str
    status: str
    command: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def began(self) -> str:
        """When it started, in local time."""
        return "" if self.started is None else datetime.fromtimestamp(self.started).strftime("%Y-%m-%d %H:%M")

    @property
    def took(self) -> str:
        """How long it has been running, or ran."""
        if self.started is None:
            return ""
        return str(timedelta(seconds=round((self.ended or time.time()) - self.started)))

    @property
    def over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def code(self) -> int:
        """The exit code of a job that is over: the command's own, or 143 if it was stopped."""
        if self.status == "SUCCEEDED":
            return 0
        return STOPPED_CODE if self.status == "STOPPED" else self.exit_code or 1


def token() -> str | None:
    """Return the cluster's token from where Ray keeps it, or None."""
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return (path.read_text().strip() or None) if path.is_file() else None


def connect(address: str) -> JobSubmissionClient:
    """Return a client of a cluster's job API; raise SubmitError if the cluster does not answer or refuses."""
    if not address.startswith(("http://", "https://")):
        raise SubmitError(
            f"address {shown(address)}: expected the dashboard's, such as {DEFAULT_ADDRESS}; `ray dashboard "
            "cluster.yaml` opens a tunnel to it"
        )
    for name in ("dashboard_sdk", "job.sdk"):  # they report each step of an upload
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
    found = token()
    headers = {"Authorization": f"Bearer {found}"} if found else {}
    try:
        return JobSubmissionClient(address, headers=headers)
    except AuthenticationError as error:
        raise _refused(address, found, error) from None
    except (ConnectionError, RuntimeError, requests.RequestException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SubmitError(
            f"cluster {shown(address)}: {reason}; expected Ray's dashboard to answer there; start the cluster, open "
            "a tunnel with `ray dashboard cluster.yaml`, or give --address"
        ) from None


def _refused(address: str, found: str | None, error: AuthenticationError) -> SubmitError:
    what = f"the token was refused ({str(error).splitlines()[0]})" if found else "it asks for a token, none was found"
    return SubmitError(
        f"cluster {shown(address)}: {what}; expected the token that the cluster was started with; {TOKEN_REMEDY}"
    )


def read_runtime_env(path: str | None) -> dict[str, Any]:
    """Read a runtime environment from a YAML file; raise SubmitError for fields that Raydiology sets itself."""
    if path is None:
        return {}
    try:
        tree = parsed(Path(path).read_text())
    except FileNotFoundError:
        raise SubmitError(f"runtime environment {path}: no such file") from None
    except yaml.YAMLError as error:
        raise SubmitError(f"runtime environment {path}: not YAML: {error}") from None
    variables = tree.get("env_vars", {}) if isinstance(tree, dict) else None
    if not isinstance(variables, dict):
        raise SubmitError(f"runtime environment {path}: expected a mapping, in which env_vars is a mapping too")
    own = [name for name in ("working_dir", "excludes", "worker_process_setup_hook") if name in tree]
    own += [f"env_vars.{name}" for name in (*WORKERS_VARIABLES, JOB_VARIABLE, COMMIT_VARIABLE) if name in variables]
    if own:
        raise SubmitError(
            f"runtime environment {path}: Raydiology itself sets {', '.join(own)}; leave it out; --working-dir gives "
            "the folder"
        )
    return tree


def submit(client: JobSubmissionClient, command: Sequence[str], package: Package, runtime_env: dict[str, Any]) -> str:
    """Upload the files of a working directory and start a raydiology command in it; return the job's id.

    Raises SubmitError if the directory is too large for Ray.
    """
    variables = {
        STOP_VARIABLE: str(STOP_WAIT_S),
        JOB_VARIABLE: "1",
        COMMIT_VARIABLE: git_commit(package.folder),
        **{name: str(value) for name, value in runtime_env.get("env_vars", {}).items()},
    }
    with TemporaryDirectory(prefix="raydiology-") as scratch:
        working_dir = Path(scratch) / "working_dir.zip"
        pack(package, working_dir)
        return client.submit_job(
            entrypoint=f"python -m orchestrator.cli {shlex.join(command)}",
            runtime_env={**runtime_env, "working_dir": str(working_dir), "env_vars": variables},
            metadata={"command": shlex.join(command)},
        )


def pack(package: Package, path: Path) -> None:
    """Write a package as a zip; raise SubmitError if it exceeds Ray's limit."""
    package.write(path)
    size = path.stat().st_size
    if size >= GCS_STORAGE_MAX_SIZE:
        with ZipFile(path) as content:
            largest = sorted(content.infolist(), key=lambda entry: -entry.file_size)[:3]
        named = ", ".join(f"{entry.filename} ({entry.file_size / 2**20:.0f} MiB)" for entry in largest)
        raise SubmitError(
            f"working directory {package.folder}: {size / 2**20:.0f} MiB to upload, expected less than "
            f"{GCS_STORAGE_MAX_SIZE / 2**20:.0f}; the largest are {named}; remove what the job does not need"
        )


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> ClusterJob:
    """Hand a job's output to ``write`` as it comes, from beginning to end; return the finished job.

    Raises SubmitError if there is no such job or the connection is lost.
    """
    find(client, job)
    try:
        asyncio.run(_write_all(client.tail_job_logs(job), write))
    except (aiohttp.ClientError, RuntimeError) as error:
        raise _lost(job, error) from None
    return _wait(client, job)


async def _write_all(lines: AsyncIterator[str], write: Callable[[str], None]) -> None:
    async for text in lines:
        write(text)


def stop(client: JobSubmissionClient, job: str) -> ClusterJob:
    """Ask a job to save a checkpoint and end; return it once it is over."""
    if not find(client, job).over:
        client.stop_job(job)
    return _wait(client, job)


def _wait(client: JobSubmissionClient, job: str) -> ClusterJob:
    while not (found := find(client, job)).over:
        time.sleep(POLL_S)
    return found


def _lost(job: str, error: Exception) -> SubmitError:
    return SubmitError(
        f"job {job}: the connection was lost ({type(error).__name__}); the job goes on; come back with "
        f"`raydiology job logs {job}`"
    )


def find(client: JobSubmissionClient, job: str) -> ClusterJob:
    """Return a job; raise SubmitError if the cluster knows no job with this id."""
    try:
        return _job(client.get_job_info(job))
    except requests.RequestException as error:
        raise _lost(job, error) from None
    except RuntimeError as error:
        if "404" not in str(error):
            raise
        raise SubmitError(
            f"job {job}: the cluster knows no such job; `raydiology job list` shows those it knows"
        ) from None


def jobs(client: JobSubmissionClient) -> list[ClusterJob]:
    """List the submitted jobs of a cluster, the oldest first."""
    submitted = [_job(details) for details in client.list_jobs() if details.submission_id]
    return sorted(submitted, key=lambda job: job.started or 0.0)


def _job(details: JobDetails) -> ClusterJob:
    return ClusterJob(
        id=str(details.submission_id),
        status=details.status.value,
        command=(details.metadata or {}).get("command", str(details.entrypoint)),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=str(details.message or ""),
    )
