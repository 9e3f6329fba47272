"""Hindrance: why MLflow refused something, in MLflow's own words, and whether a later try can succeed."""

import errno
import re
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from orchestrator.tracking.store import hide_password

FAULTS = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError)
"""What MLflow, its databases and its artifact stores raise when something does not work."""

_PASSING_CODES = (
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED",
    "CANCELLED", "ABORTED", "RESOURCE_CONFLICT",
)  # fmt: skip
_PASSING_ERRNO = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE,
    errno.ESTALE, errno.EHOSTUNREACH, errno.ENETUNREACH,
)  # fmt: skip
_PASSING_SQLITE = ("locked", "full", "disk I/O error", "busy")
# urllib3 puts the cause last, behind its own objects.
_CAUSE = re.compile(r"\(Caused by \w+\(.*?\): (.*?)[\"']?\)\)$")


@dataclass(frozen=True)
class Hindrance:
    """MLflow's words for a failure, and whether the same request would fail for ever."""

    words: str
    lasting: bool


def hindrance_of(error: BaseException, uri: str, opening: bool = False) -> Hindrance:
    """Explain one of the ``FAULTS``; ``opening`` says that MLflow at ``uri`` was only being opened.

    A server's client is opened without a request, so that an error there will not go away.
    """
    first = next(iter(str(error).splitlines()), "").strip() or type(error).__name__
    words = first.replace(uri, hide_password(uri))
    if cause := _CAUSE.search(words):
        words = cause[1]
    return Hindrance(words, _is_lasting(error, opening))


@contextmanager
def in_words(uri: str, given: str) -> Generator[None]:
    """Raise ValueError, with MLflow's words, if the body cannot read MLflow at an address."""
    try:
        yield
    except FAULTS as error:
        words = hindrance_of(error, uri).words
        raise ValueError(
            f"{given} {hide_password(uri)}: MLflow cannot read it: {words}; check the address, and that a server runs"
        ) from None


def _is_lasting(error: BaseException, opening: bool) -> bool:
    if isinstance(error, MlflowException):
        if isinstance(error.__cause__, SQLAlchemyError):
            return _is_lasting(error.__cause__, opening)
        return opening or error.error_code not in _PASSING_CODES
    if isinstance(error, OperationalError):
        # From SQLite, most are about its file; from a database server, they mean that it does not answer.
        return isinstance(error.orig, sqlite3.Error) and _is_lasting(error.orig, opening)
    if isinstance(error, sqlite3.OperationalError):
        return not any(part in str(error) for part in _PASSING_SQLITE)
    if isinstance(error, OSError):
        passing = isinstance(error, ConnectionError | TimeoutError) or error.errno in _PASSING_ERRNO
        return not passing
    return True
