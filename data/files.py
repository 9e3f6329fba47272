"""Files: local paths and remote addresses (``s3://bucket/key``) behind one interface, pyarrow's file systems.

Endpoint and credentials of a bucket come from the environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, a
profile, or a machine's role), never from an address: addresses are logged.
"""

import os
import re
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pyarrow import NativeFile, fs

from data.walk import Oddity, walk


@dataclass(frozen=True)
class File:
    """A file of a tree: its path relative to the tree's root with ``/``, its address, size and time of change."""

    path: str
    uri: str
    num_bytes: int
    mtime_ns: int = 0


@dataclass(frozen=True)
class Tree:
    """A folder as it was listed: its files sorted by path, and the places in it that give none, each once."""

    files: list[File]
    odd: list[Oddity]


class StorageError(ValueError):
    """A bucket that cannot be reached, does not exist or refuses access; the message says what to do."""


_S3_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation|Bucket '[^']*' not found")
_DENIED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID", "MISSING_AUTHENTICATION_TOKEN",
           "SIGNATURE_DOES_NOT_MATCH", "UNRECOGNIZED_CLIENT", "EXPIRED_TOKEN")  # fmt: skip


@contextmanager
def reaching(uri: str) -> Generator[None]:
    """Raise StorageError, without file names, if a bucket fails while the body reads or writes it."""
    try:
        yield
    except OSError as error:
        if (failure := _failure(uri, str(error))) is None:
            raise
        raise failure from None


def _failure(uri: str, text: str) -> StorageError | None:
    """Return Arrow's S3 error in plain words; None for other errors, such as a damaged file."""
    if (found := _S3_ERROR.search(text)) is None:
        return None
    bucket = f"s3://{urlsplit(uri).netloc.rpartition('@')[2]}"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    code, status, operation = found.groups()
    if code is None:
        return StorageError(f"{bucket}: no such bucket; expected an existing bucket; create it, or check its name")
    if code == "NETWORK_CONNECTION":
        place = f"at AWS_ENDPOINT_URL {shown(endpoint)}" if endpoint else "of AWS (AWS_ENDPOINT_URL is not set)"
        return StorageError(
            f"{bucket}: cannot be reached; expected the S3 server {place} to answer; check that variable and the "
            "network"
        )
    if code in _DENIED or status in ("401", "403"):
        return StorageError(
            f"{bucket}: access denied ({operation}: {code}); expected credentials that may read and write; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give every node a role that may"
        )
    return StorageError(
        f"{bucket}: {code}{f' (HTTP status {status})' if status else ''} during {operation}; expected an answer; run "
        "the same command again: finished work is kept"
    )


def without_credentials(uri: str) -> str:
    """Return an address; raise ValueError where it holds credentials: it would be logged with them."""
    if "://" in uri and "@" in urlsplit(uri).netloc:
        raise ValueError(
            f"address {shown(uri)} was given with credentials in it, which logs and MLflow would show; leave them "
            "out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment of every node"
        )
    return uri


def check_writable(uri: str, subject: str) -> None:
    """Write and delete a file below an address; raise StorageError where that fails."""
    try:
        filesystem, base = locate(uri)
        path = f"{base}/.raydiology-{uuid.uuid4().hex}"
        with reaching(uri):
            filesystem.create_dir(base, recursive=True)
            with filesystem.open_output_stream(path):
                pass
            filesystem.delete_file(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"{subject} {shown(uri)}: cannot be written ({reason}); expected a folder that exists or can be created; "
            f"give {subject} another one, or check its permissions and its free space"
        ) from None


@lru_cache(maxsize=16)
def _remote(root: str) -> tuple[fs.FileSystem, str]:
    """Connect once per bucket: opening a connection costs a round trip or more."""
    return fs.FileSystem.from_uri(root)


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of an address, and the path in it.

    A remote address may carry pyarrow's options as a query (``s3://bucket/scans?endpoint_override=...``); letters
    of its path that an address cannot hold are percent-encoded.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), Path(uri).expanduser().absolute().as_posix()
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return fs.LocalFileSystem(), unquote(parts.path)
    query = f"?{parts.query}" if parts.query else ""
    with reaching(uri):
        filesystem, bucket = _remote(f"{parts.scheme}://{parts.netloc}{query}")
    return filesystem, f"{bucket}/{unquote(parts.path).strip('/')}".rstrip("/")


def shown(uri: str) -> str:
    """Return an address in a form that messages may show: without credentials and options."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def join(uri: str, path: str) -> str:
    """Return the address of a path below another address."""
    if "://" not in uri:
        return f"{uri.rstrip('/')}/{path}"
    address, _, query = uri.partition("?")
    return f"{address.rstrip('/')}/{quote(path)}" + (f"?{query}" if query else "")


_listed: ContextVar[dict[str, Tree] | None] = ContextVar("listed", default=None)


@contextmanager
def listing_once() -> Generator[None]:
    """List each folder once while the body runs: all who ask see the same files, and a bucket is asked once."""
    token = _listed.set({})
    try:
        yield
    finally:
        _listed.reset(token)


def list_tree(root: str) -> list[File]:
    """List every file below a folder, sorted by path; hidden files and folders (``._x``, ``.git``) are left out."""
    return survey(root).files


def survey(root: str) -> Tree:
    """List a folder, and what in it is no file that can be read; raise ValueError where it is no folder."""
    known = _listed.get()
    if known is not None and root in known:
        return known[root]
    tree = _survey(root)
    if known is not None:
        known[root] = tree
    return tree


def _survey(root: str) -> Tree:
    filesystem, base = locate(root)
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            entries, odd = walk(base)
            files = [File(e.path, join(root, e.path), e.num_bytes, e.mtime_ns) for e in entries]
        else:
            files, odd = _list_remote(root, filesystem, base), []
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise ValueError(
            f"source {shown(root)} is not a readable folder; expected a folder of scans; check the path"
        ) from None
    return Tree(sorted(files, key=lambda file: file.path), odd)


def _list_remote(root: str, filesystem: fs.FileSystem, base: str) -> list[File]:
    with reaching(root):
        if filesystem.get_file_info(base).type != fs.FileType.Directory:
            raise NotADirectoryError(base)
        infos = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    files = []
    for info in infos:
        path = info.path[len(base) :].lstrip("/")
        hidden = any(part.startswith(".") for part in path.split("/"))
        if info.type == fs.FileType.File and not hidden:
            files.append(File(path, join(root, path), info.size, info.mtime_ns or 0))
    return files


def folder_of(uri: str) -> str:
    """Return the address of the folder in which a file lies."""
    address, _, query = uri.partition("?")
    return (address.rpartition("/")[0] or ".") + (f"?{query}" if query else "")


def is_file(uri: str) -> bool:
    """Tell whether there is a file at an address."""
    filesystem, path = locate(uri)
    with reaching(uri):
        return filesystem.get_file_info(path).type == fs.FileType.File


def state_of(uri: str) -> tuple[int, int]:
    """Return the size of a file and the time of its last change in nanoseconds."""
    filesystem, path = locate(uri)
    with reaching(uri):
        info = filesystem.get_file_info(path)
    return info.size or 0, info.mtime_ns or 0


def open_file(uri: str) -> NativeFile:
    """Open a file for reading and seeking."""
    filesystem, path = locate(uri)
    with reaching(uri):
        return filesystem.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    """Return the whole content of a file."""
    with open_file(uri) as file, reaching(uri):
        return file.read()


@contextmanager
def local_path(uri: str) -> Generator[Path]:
    """Give a path for libraries that need one: the file itself, or a temporary copy of a remote one."""
    filesystem, path = locate(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="raydiology-") as folder:
        copy = Path(folder) / f"scan{''.join(Path(path).suffixes[-2:])}"
        copy.write_bytes(read_bytes(uri))
        yield copy
