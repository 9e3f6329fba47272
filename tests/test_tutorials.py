"""Tutorials, typed word by word: their files are saved, their commands run, and what they print is compared.

Those of one group are typed in one copy of the project, in the order of the list, and the groups side by side. All
but a paper's table use the scans of the first tutorial: a group without it begins with the commands that make them.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest

from tests import clusters
from tests.documents import ROOT, TUTORIALS, blocks_of
from tests.waiting import kill_tree

WITHIN_S = 700
GROUPS = (("my_scans", "resume", "own_method"), ("sweep", "own_task", "cluster", "paper_table"))
SCANS = "scans.yaml"  # the last that the first tutorial makes before it trains
DONE = "=== typed ==="
NOT_COPIED = shutil.ignore_patterns("__pycache__", "generated")


@dataclass(frozen=True)
class Typed:
    """A line of a tutorial, and what the tutorial says that it prints."""

    line: str
    shown: str = ""


@dataclass(frozen=True)
class Saved:
    """A file that a tutorial asks for."""

    name: str
    text: str


def told(path: Path) -> list[Typed | Saved]:
    """Return what a tutorial asks for, in its order; a block of a file follows "Save this as `NAME`:"."""
    told: list[Typed | Saved] = []
    text = path.read_text()
    for block in blocks_of(path):
        if block.language in ("yaml", "python"):
            before = text[: text.index(f"```{block.language}\n{block.text}")].rstrip()
            name = re.search(r"[Ss]ave this as `([^`]+)`:$", before)
            assert name, f"{path.name}: no name before the file {block.text[:60]!r}"
            told.append(Saved(name[1], block.text))
        elif block.language == "":
            told += [Typed(line) for line in block.lines]
        elif block.language == "console":
            for line, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
                told.append(Typed(line, shown))
    return told


def names_next(printed: str) -> list[str]:
    """Return the commands that the last lines of a command name."""
    return re.findall(r"^(?:next|then): (.*)$", printed, re.MULTILINE)


def is_named(typed: str, named: list[str]) -> bool:
    """Tell whether a command is one of those that were named, with overrides after it or not."""
    return any(shlex.split(typed)[: len(words)] == words for words in map(shlex.split, named))


def alike(text: str) -> str:
    """Return a text without what differs between machines: numbers, digests, line ends, and lines of tables."""
    prose = " ".join(line for line in text.splitlines() if not re.search("[─━│┃]", line))
    return " ".join(re.sub(r"[0-9a-f]{12,}|[\d.,]+", "0", prose).split())


class Shell:
    """A shell in which a person types one line after the other."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._written = (folder / "errors.txt").open("w")
        self._errors = (folder / "errors.txt").open()  # with a place of its own in the file
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._written,
            text=True,
        )

    def type(self, line: str) -> tuple[int, str, str]:
        """Run a line; return its exit code, output and errors; end everything if it takes too long."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{line}\nexit_code=$?; echo; echo '{DONE}' $exit_code\n")
        self._bash.stdin.flush()
        limit = Timer(WITHIN_S, kill_tree, [self._bash])
        limit.start()
        said = ""
        for printed in self._bash.stdout:
            if printed.startswith(DONE):
                limit.cancel()
                return int(printed.removeprefix(DONE)), said.removesuffix("\n"), self._errors.read()
            said += printed
        raise TimeoutError(f"{line}: not done within {WITHIN_S} s; it printed {said}")

    def end(self) -> None:
        """End the shell and all that it left running."""
        kill_tree(self._bash)
        self._written.close()
        self._errors.close()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which nothing was run yet."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("data", "methods", "orchestrator", "experiments", "tests", "cluster"):
        shutil.copytree(ROOT / name, folder / name, ignore=NOT_COPIED)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "cluster.yaml", ".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def shell(clone: Path) -> Iterator[Shell]:
    """A shell in the copy, whose home and Ray are its own."""
    with clusters.short_folder() as own:
        port, client_port = clusters.free_ports(2)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
        environment |= clusters.SPARING | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(clone),
            "HOME": own,
            "RAY_TMPDIR": own,
            "RAYDIOLOGY_HOME": str(clone / "keys"),
            "PORT": str(port),
            "CLIENT_PORT": str(client_port),
            "COLUMNS": "160",
        }
        shell = Shell(clone, environment)
        yield shell
        shell.end()


def test_every_tutorial_is_typed() -> None:
    assert sorted(path.stem for path in TUTORIALS) == sorted(name for group in GROUPS for name in group)


@pytest.mark.slow
@pytest.mark.tutorial
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.xdist_group(group[0])) for group in GROUPS for name in group],
)
def test_a_tutorial_works_as_it_is_written(name: str, clone: Path, shell: Shell) -> None:
    if name not in ("my_scans", "paper_table") and not (clone / SCANS).exists():
        make_scans(clone, shell)
    named: list[str] = []
    for asked in told(ROOT / "docs" / "tutorials" / f"{name}.md"):
        if isinstance(asked, Saved):
            (clone / asked.name).write_text(asked.text)
            continue
        if name == "my_scans" and asked.line.split()[1] not in (
            "phantom",
            "ingest",
        ):  # for scans and words of one's own
            assert is_named(asked.line, named), (asked.line, named)
        code, said, errors = shell.type(asked.line)
        ends_by_a_signal = asked.line.startswith("kill")
        assert code == 0 or ends_by_a_signal, (asked.line, said, errors[-3000:])
        named = names_next(said) or named
        for part in asked.shown.split("..."):
            assert alike(part) in alike(said) or alike(part) in alike(errors), (asked.line, part, said, errors)
    if name == "my_scans":
        check_first_experiment(clone)


def make_scans(clone: Path, shell: Shell) -> None:
    """Type the commands of the first tutorial that come before its first training."""
    for asked in told(ROOT / "docs" / "tutorials" / "my_scans.md"):
        assert isinstance(asked, Typed)
        code, _, errors = shell.type(asked.line)
        assert code == 0, (asked.line, errors[-3000:])
        if (clone / SCANS).exists():
            return
    raise AssertionError(f"no command of the first tutorial writes {SCANS}")


def check_first_experiment(clone: Path) -> None:
    """Check that the first tutorial has led to two pretrainings and six fine-tunings."""
    assert len(list((clone / "runs" / "scans").glob("finetune-*/result.json"))) == 6
    assert len(list((clone / "runs" / "scans").glob("pretrain-*/result.json"))) == 2
    report = next((clone / "runs" / "scans").glob("table-*/report.html")).read_text()
    assert all(row in report for row in ("scratch", "SimSiam, IoU [0.3, 0.6]", "SimMIM"))
