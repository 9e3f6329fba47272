"""The first hour: the commands of docs/first_experiment.md, typed one after the other, lead to a table."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks_of
from tests.waiting import kill_tree

WITHIN_S = 700
DOCUMENT = ROOT / "docs" / "first_experiment.md"
SHOWN = [block for block in blocks_of(DOCUMENT) if block.language == "console"]
TYPED = [line for block in SHOWN for line in block.lines]


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


def type_in_shell(line: str, folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Run a command; return its exit code, output and errors; kill all that it started if it takes too long."""
    job = subprocess.Popen(
        line, cwd=folder, env=environment, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = job.communicate(timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        kill_tree(job)
        raise
    return job.returncode, output, errors


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_a_folder_of_scans_to_a_table_by_the_commands_of_the_document(tmp_path: Path) -> None:
    verbs = [shlex.split(line)[1] for line in TYPED]
    assert verbs == ["phantom", "ingest", "init", "finetune", "table", "compare"]
    shell = {**os.environ, "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    shell |= {"RAYDIOLOGY_HOME": str(tmp_path / "keys"), "COLUMNS": "160"}
    outputs = {verb: block.text.partition("\n")[2].split("...\n") for verb, block in zip(verbs, SHOWN, strict=True)}
    named, said = [], {}
    for verb, line in zip(verbs, TYPED, strict=True):
        if verb not in ("phantom", "ingest"):  # which stand for scans and words of one's own
            assert is_named(line, named), (line, named)
        code, said[verb], errors = type_in_shell(line, tmp_path, shell)
        assert code == 0, errors
        named = names_next(said[verb]) or named
        for told in outputs[verb]:
            assert alike(told) in alike(said[verb]), told
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"scans", "shards", "scans.yaml", "scans_table.yaml", "runs", "keys"}
    for verb in ("table", "compare"):
        assert all(row in said[verb] for row in ("scratch", "SimSiam, IoU [0.3, 0.6]", "SimMIM")), said[verb]
    assert len(list((tmp_path / "runs" / "scans").glob("finetune-*/result.json"))) == 6
    assert len(list((tmp_path / "runs" / "scans").glob("pretrain-*/result.json"))) == 2
