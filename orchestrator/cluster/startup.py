"""Startup: say in one sentence, within a minute, why Ray cannot be joined or started here."""

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import AuthenticationError

ANSWERS_WITHIN_S = 10.0
# Ray would try twenty times, each time for three quarters of a minute.
ATTEMPTS_VARIABLE, ATTEMPTS = "RAY_gcs_server_port_wait_time_s", "1"
MOST_SOCKET_BYTES = 107
# Ray puts this below its temporary folder at each start; only the process's id varies in length.
SOCKET = "ray/session_2026-01-01_00-00-00_000000_{}/sockets/plasma_store"
TOKEN_REMEDY = (
    "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or put the cluster's token into ~/.ray/auth_token (mode 600); it is "
    "in the same place on the cluster's head"
)
OR_ALONE = "or unset RAY_ADDRESS to use this machine alone"


class StartupError(ValueError):
    """Ray cannot be joined or started; the message says why and what to do."""


@contextmanager
def joining(address: str) -> Generator[None]:
    """Raise StartupError if the body cannot join the cluster at an address."""
    _check_answer(address)
    os.environ.setdefault(ATTEMPTS_VARIABLE, ATTEMPTS)
    try:
        yield
    except AuthenticationError as error:
        raise StartupError(
            f"RAY_ADDRESS {address}: the cluster refused the token ({_first(error)}); {TOKEN_REMEDY}"
        ) from None
    except (RuntimeError, ConnectionError, OSError, ValueError) as error:
        remedy = "use the versions that the cluster has" if "ersion" in str(error) else "start one there"
        raise StartupError(
            f"RAY_ADDRESS {address}: no Ray cluster could be joined ({_first(error)}); expected a running one, of "
            f"this version of Ray and Python; {remedy}, correct the address, {OR_ALONE}"
        ) from None


@contextmanager
def starting() -> Generator[None]:
    """Raise StartupError if the body cannot start Ray on this machine."""
    folder = _temporary_folder()
    _check_length(folder)
    try:
        yield
    except OSError as error:
        remedy = "free space there, or name another folder with RAY_TMPDIR"
        if error.filename and "/.ray" in str(error.filename):
            remedy = "set HOME to a folder that can be written: Ray keeps its token there"
        raise StartupError(
            f"Ray could not be started: {error.filename or folder}: {error.strerror or _first(error)}; expected a "
            f"folder that can be written; {remedy}"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise StartupError(
            f"Ray could not be started: {_first(error)}; expected it to be up within half a minute; run the same "
            f"command again when the machine is less busy, and see the newest session in {folder}/ray, its logs say "
            "what it waited for"
        ) from None


def _check_answer(address: str) -> None:
    """Raise StartupError if nothing listens at host:port; other forms (``auto``) are for Ray to understand."""
    host, separator, port = address.rpartition(":")
    if "://" in address or address in ("auto", "local"):
        return
    if not separator or not port.isdigit():
        raise StartupError(
            f"RAY_ADDRESS {address}: not an address; expected HOST:PORT, such as 10.0.0.1:6379; correct it, "
            f"{OR_ALONE}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise StartupError(
            f"RAY_ADDRESS {address}: nothing answers there ({error}); expected the head of a running cluster; start "
            f"it with `ray start --head`, correct the address, {OR_ALONE}"
        ) from None


def _check_length(folder: str) -> None:
    """Raise StartupError if the sockets that Ray puts below its temporary folder would have too long a path."""
    needed = len(str(Path(folder, SOCKET.format(os.getpid()))).encode())
    if needed > MOST_SOCKET_BYTES:
        most = len(folder.encode()) - (needed - MOST_SOCKET_BYTES)
        raise StartupError(
            f"Ray could not be started: its temporary folder {folder} has a path of {len(folder.encode())} bytes, "
            f"expected at most {most}: sockets lie below it; set RAY_TMPDIR to a shorter one, such as /tmp"
        )


def _temporary_folder() -> str:
    """Return the temporary folder that Ray will choose."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def _first(error: BaseException) -> str:
    """Return the first line of an error's message, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].rstrip(".:")
