"""Package: the files of a working directory that travel with a job: the code that it needs, and nothing else.

We list what travels, not what stays: a folder of scans may have any name, and scans may have any suffix or none. In a
git checkout, only files that git tracks travel, and the experiment files that the command names.
"""

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZipFile

from orchestrator.config.yaml_text import parsed

CODE = ("data", "methods", "orchestrator")
CONFIGS = ("experiments", "cluster")
TOP = ("pyproject.toml", "constraints.txt", "README.md", "cluster.yaml")
# Fields of experiments, tables and sweeps that name further files, relative to the file.
_NAMING = ("base", "experiment", "cohorts")
# What a job could need although git does not track it or it lies elsewhere.
_COULD_BE_NEEDED = (".py", ".yaml", ".yml")
_NEVER_NEEDED = ("tests", "docs")
_MOST_NAMED = 5


class PackageError(ValueError):
    """A working directory that cannot be sent; the message says why and what to do."""


@dataclass(frozen=True)
class Package:
    """The files of a working directory that travel, relative to it.

    asked     files of the command that would not travel otherwise
    tracked   whether git says which files are part of the checkout
    missed    code and experiments that stay here, because git does not track them or because they lie elsewhere
    """

    folder: Path
    files: tuple[str, ...]
    asked: tuple[str, ...]
    tracked: bool
    missed: tuple[str, ...]

    @cached_property
    def num_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)

    def remarks(self) -> list[str]:
        """Say which files travel, and which stay behind although a job could need them."""
        size = f"{self.num_bytes / 2**20:.1f} MiB"
        lines = [f"working directory: {len(self.files)} files, {size} (code and experiments, no other files)"]
        if not self.tracked:
            lines.append("the working directory is not a git checkout: files were chosen by folder and suffix alone")
        if self.asked and self.tracked:
            lines.append(f"sent for this command, though git does not track it: {_named(self.asked)}")
        if self.missed:
            lines.append(
                f"not sent: {_named(self.missed)}; if the job needs them, move them into {', '.join(CODE)} or "
                "experiments, and `git add` them"
            )
        return lines

    def write(self, path: Path) -> None:
        """Write the files as a zip."""
        with ZipFile(path, "w", ZIP_DEFLATED, strict_timestamps=False) as content:
            for name in self.files:
                content.write(self.folder / name, name)


def package_of(folder: Path, configs: Iterable[str] = ()) -> Package:
    """Choose the files that travel; ``configs`` are the files that a command names.

    Raises PackageError if the folder is not a checkout of Raydiology, or a config lies outside it.
    """
    if not (folder / "orchestrator" / "cli.py").is_file():
        raise PackageError(
            f"working directory {folder}: no orchestrator/cli.py; expected a checkout of Raydiology; run the command "
            "there, or name it with --working-dir"
        )
    tracked = _git(folder, "ls-files", "-z")
    if tracked is not None and "orchestrator/cli.py" not in tracked:
        tracked = None  # a copy of the code inside another repository
    candidates = list(_walked(folder)) if tracked is None else tracked
    files = {name for name in candidates if _travels(name) and _is_plain(folder, name)}
    asked = {name for config in configs for name in _behind(folder, config)} - files
    others = [] if tracked is None else [*tracked, *(_git(folder, "ls-files", "-zo", "--exclude-standard") or [])]
    missed = {name for name in others if _could_be_needed(name)} - files - asked
    return Package(
        folder, tuple(sorted(files | asked)), tuple(sorted(asked)), tracked is not None, tuple(sorted(missed))
    )


def _travels(name: str) -> bool:
    path = PurePosixPath(name)
    top = path.parts[0]
    if len(path.parts) == 1:
        return name in TOP
    return (top in CODE and path.suffix == ".py") or (top in CONFIGS and path.suffix in (".yaml", ".yml"))


def _could_be_needed(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in _COULD_BE_NEEDED and path.parts[0] not in _NEVER_NEEDED and not name.startswith(".")


def _is_plain(folder: Path, name: str) -> bool:
    """Tell whether a file exists and is not a link to another place, such as a scan."""
    path = folder / name
    return path.is_file() and path.resolve() == folder.resolve() / name


def _git(folder: Path, *words: str) -> list[str] | None:
    """Return the names that a git command lists; None if the folder is not a checkout."""
    try:
        listed = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return [name for name in listed.stdout.decode(errors="surrogateescape").split("\0") if name]


def _walked(folder: Path) -> Iterator[str]:
    yield from TOP
    for top in (*CODE, *CONFIGS):
        for path in (folder / top).rglob("*"):
            yield path.relative_to(folder).as_posix()


def _behind(folder: Path, config: str) -> Iterator[str]:
    """Yield a command's config and the files that it builds on; raise PackageError if one lies elsewhere."""
    path = folder / config
    name = Path(config) if not Path(config).is_absolute() else None
    inside = path.resolve().is_relative_to(folder.resolve())
    if name is None or not inside:
        raise PackageError(
            f"{config}: lies outside the working directory {folder}, which is all that travels; expected a path "
            "relative to it; copy the file to experiments/"
        )
    yield path.resolve().relative_to(folder.resolve()).as_posix()
    tree = parsed(path.read_text())
    for other in _named_by(tree if isinstance(tree, dict) else {}):
        yield from _behind(folder, str(Path(config).parent / other))


def _named_by(tree: dict[str, object]) -> Iterator[str]:
    for field in _NAMING:
        value = tree.get(field)
        yield from (one for one in (value.values() if isinstance(value, dict) else [value]) if isinstance(one, str))


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
