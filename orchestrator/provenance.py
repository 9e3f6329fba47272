"""Provenance: which code runs, and whether it runs in a submitted job. Imports little, so that asking is cheap."""

import getpass
import os
import shlex
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

UNKNOWN = "unknown"
# Set in a job's environment by `raydiology submit`: the upload has no .git, and its folder does not outlive the job.
JOB_VARIABLE = "RAYDIOLOGY_JOB"
COMMIT_VARIABLE = "RAYDIOLOGY_COMMIT"
_checks_a_job = ContextVar("_checks_a_job", default=False)


def git_commit(folder: Path | None = None) -> str:
    """Return the commit of a checkout, by default of the code that runs; 'unknown' if there is none."""
    if folder is None and (given := os.environ.get(COMMIT_VARIABLE)):
        return given
    command = ["git", "-C", str(folder or Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN


def typed_command() -> str:
    """Return the command that this process was started by, files without their folders."""
    program, *words = sys.argv
    named = "raydiology" if Path(program).name in ("raydiology", "cli.py") else Path(program).name
    return shlex.join([named, *(Path(word).name if word.endswith((".yaml", ".yml")) else word for word in words)])


def user() -> str:
    """Return the login name of the person who runs this process; 'unknown' where it has none, as in a container."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return UNKNOWN


def in_job() -> bool:
    """Tell whether this process belongs to a job that `raydiology submit` started, or checks a job."""
    return _checks_a_job.get() or bool(os.environ.get(JOB_VARIABLE))


@contextmanager
def as_in_job() -> Generator[None]:
    """Make the body refuse everything that a job would refuse."""
    token = _checks_a_job.set(True)
    try:
        yield
    finally:
        _checks_a_job.reset(token)
