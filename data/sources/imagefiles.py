"""Imagefiles: which file of a folder a table's row means. Tables travel: their paths begin elsewhere than they lie.

A path is relative to the table, with or without its suffix, with slashes of either kind and letters of either case.
It may be absolute, or lead out of the folder and in again. Where no row leads to a file, folders that all the rows
begin with are dropped (``CheXpert-v1.0-small/train/...`` in a table that lies in that folder). A name without a
folder may lie in any folder that has it once.
"""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile

from data.files import File, is_file, locate
from data.quarantine import BadStudy

Found = File | BadStudy

NO_NAME = BadStudy("a row of the table without a file name", "the path of an image", "add it, or delete the row")
NO_FILE = BadStudy(
    "a row of the table without its image file",
    "a file at the given path, relative to the table",
    "add the file, correct the path, or delete the row from the table",
)
OUTSIDE = BadStudy(
    "a row of the table whose image lies outside of the table's folder",
    "images in the folder of the table, or in folders inside it",
    "put the table into a folder that holds the images too, and correct its paths",
)


def _several(number: int) -> BadStudy:
    return BadStudy(
        f"a row of the table whose name {number} files have",
        "one file",
        "give the path with folder and suffix in the table",
    )


def find_image_files(
    paths: Sequence[str], files: Iterable[File], suffixes: tuple[str, ...], folder: str
) -> list[Found]:
    """Return the file of each path, or the reason why there is none; a suffix in ``suffixes`` may be left out."""
    index = _Index(files, suffixes)
    base = locate(folder)[1]
    clean = [_inside(_clean(path), base) for path in paths]
    found = [index.find(raw, path) for raw, path in zip(paths, clean, strict=True)]
    for depth in range(1, _num_shared(clean) + 1):
        if any(isinstance(file, File) for file in found):
            break
        shorter = [index.find("", path.split("/", depth)[-1]) for path in clean]
        found = shorter if any(isinstance(file, File) for file in shorter) else found
    return [
        NO_NAME if not path else OUTSIDE if _is_outside(path, folder, base) else file
        for path, file in zip(clean, found, strict=True)
    ]


def _num_shared(paths: Iterable[str]) -> int:
    """Return the number of folders that all paths begin with."""
    folders = [path.split("/")[:-1] for path in paths if path]
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))


def _clean(path: str) -> str:
    """Return a path with slashes and without ``.``; empty for an empty one."""
    path = path.strip().replace("\\", "/")
    return posixpath.normpath(path) if path else ""


def _inside(path: str, base: str) -> str:
    """Return a path as it begins in the folder, where it is absolute or leads out of the folder and in again."""
    if not path.startswith(("/", "../")):
        return path
    whole = posixpath.normpath(posixpath.join(base, path))
    return whole[len(base) + 1 :] if whole.startswith(f"{base}/") else path


def _is_outside(path: str, folder: str, base: str) -> bool:
    """Tell whether there is a file at a path that leads out of a local folder."""
    return path.startswith(("/", "../")) and "://" not in folder and is_file(posixpath.join(base, path))


def _plain(path: str) -> str:
    """Return a path in lower case, with accents in one form: macOS writes them apart from their letters."""
    return unicodedata.normalize("NFC", path).lower()


class _Index:
    """Files by path and by name, each with and without its suffix, in one spelling."""

    def __init__(self, files: Iterable[File], suffixes: tuple[str, ...]) -> None:
        self._exact = {file.path: file for file in files}
        self._by_path: dict[str, list[File]] = defaultdict(list)
        self._by_name: dict[str, list[File]] = defaultdict(list)
        for file in self._exact.values():
            path = _plain(file.path)
            suffix = next((suffix for suffix in suffixes if path.endswith(suffix)), "")
            for text in {path, path[: len(path) - len(suffix)]}:
                self._by_path[text].append(file)
                self._by_name[text.rpartition("/")[2]].append(file)

    def find(self, raw: str, path: str) -> Found:
        if exact := self._exact.get(raw) or self._exact.get(path):
            return exact
        plain = _plain(path)
        matches = self._by_path.get(plain, [])
        if not matches and "/" not in path:
            matches = self._by_name.get(plain, [])
        if len(matches) > 1:
            return _several(len(matches))
        return matches[0] if matches else NO_FILE
