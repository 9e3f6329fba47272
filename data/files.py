"""Files: local paths and remote addresses (``s3://bucket/key``) behind one interface, pyarrow's file systems."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pyarrow import NativeFile, fs


@dataclass(frozen=True)
class File:
    """A file of a tree: its path relative to the tree's root with ``/``, its address and its size."""

    path: str
    uri: str
    num_bytes: int


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
    filesystem, bucket = _remote(f"{parts.scheme}://{parts.netloc}{query}")
    return filesystem, f"{bucket}/{unquote(parts.path).strip('/')}".rstrip("/")


def shown(uri: str) -> str:
    """Return an address as messages may show it: without credentials and options."""
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


def list_tree(root: str) -> list[File]:
    """List every file below a folder, sorted by path; hidden files and folders (``._x``, ``.git``) are left out."""
    filesystem, base = locate(root)
    if filesystem.get_file_info(base).type != fs.FileType.Directory:
        raise ValueError(
            f"source {shown(root)} is no folder that can be read; expected a folder of scans; check the path"
        )
    infos = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    files = []
    for info in infos:
        path = info.path[len(base) :].lstrip("/")
        hidden = any(part.startswith(".") for part in path.split("/"))
        if info.type == fs.FileType.File and not hidden:
            files.append(File(path, join(root, path), info.size))
    return sorted(files, key=lambda file: file.path)


def is_file(uri: str) -> bool:
    """Tell whether there is a file at an address."""
    filesystem, path = locate(uri)
    return filesystem.get_file_info(path).type == fs.FileType.File


def open_file(uri: str) -> NativeFile:
    """Open a file for reading and seeking."""
    filesystem, path = locate(uri)
    return filesystem.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    """Return the whole content of a file."""
    with open_file(uri) as file:
        return file.read()


@contextmanager
def local_path(uri: str) -> Iterator[Path]:
    """Give a path for libraries that need one: the file itself, or a temporary copy of a remote one."""
    filesystem, path = locate(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="raydiology-") as folder:
        copy = Path(folder) / f"scan{''.join(Path(path).suffixes[-2:])}"
        copy.write_bytes(read_bytes(uri))
        yield copy
