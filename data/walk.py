"""Walk: every file below a local folder, each folder once, and what in it is no file that can be read.

Links are followed, but to no folder that is listed anyway and to none that holds the source: no tree is endless. Real
folders come before linked ones, so that a file has the path at which it lies.
"""

import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OddKind = Literal[
    "broken link", "file that cannot be reached", "folder that cannot be listed",
    "link to a folder that is listed anyway", "hidden file or folder",
    "name that is not UTF-8", "device or pipe",
]  # fmt: skip


@dataclass(frozen=True)
class FileEntry:
    """A file: its path below the folder, its size and the time of its last change."""

    path: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Oddity:
    """A place in a folder that gives no file, and why."""

    path: str
    kind: OddKind


def walk(base: str) -> tuple[list[FileEntry], list[Oddity]]:
    """List a folder; hidden files and folders (``._x``, ``.git``) are left out.

    Raises OSError where the folder itself cannot be listed.
    """
    root = Path(base)
    files: list[FileEntry] = []
    odd: list[Oddity] = []
    visited = {_identity(folder.stat()) for folder in (root.resolve(), *root.resolve().parents)}
    real, linked = deque([""]), deque[str]()
    while real or linked:
        folder = real.popleft() if real else linked.popleft()
        try:
            place = _identity((root / folder).stat())
            if folder and place in visited:
                odd.append(Oddity(folder, "link to a folder that is listed anyway"))
                continue
            visited.add(place)
            with os.scandir(root / folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            if not folder:
                raise
            odd.append(Oddity(folder, "folder that cannot be listed"))
            continue
        for entry in ordered:
            path = f"{folder}/{entry.name}" if folder else entry.name
            found = _look(entry)
            if isinstance(found, str):
                odd.append(Oddity(path.encode(errors="replace").decode(), found))
            elif stat.S_ISDIR(found.st_mode):
                (linked if entry.is_symlink() else real).append(path)
            else:
                files.append(FileEntry(path, found.st_size, found.st_mtime_ns))
    return files, odd


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _look(entry: os.DirEntry[str]) -> os.stat_result | OddKind:
    """Return the state of a file or folder, or why there is none to be read."""
    if entry.name.startswith("."):
        return "hidden file or folder"
    try:
        entry.name.encode()
        found = entry.stat()
    except UnicodeEncodeError:
        return "name that is not UTF-8"
    except OSError:
        return "broken link" if entry.is_symlink() else "file that cannot be reached"
    return found if stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode) else "device or pipe"
