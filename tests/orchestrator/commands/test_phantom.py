"""The command that writes phantoms: the ingest that it prints can read each kind."""

import shlex
from pathlib import Path

import pytest

from data.recipes import RECIPES
from data.sources import SourceOptions, find_studies
from orchestrator.cli import main
from orchestrator.commands.parser import parse


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num_files", "num_labelled"),
    [("abdomen", 1, 1), ("brain", 4, 1), ("fundus", 1, 2), ("chest", 1, 1), ("nodules", 1, 2), ("photographs", 1, 1)],
)
def test_a_kind_is_written_with_the_command_that_reads_it(
    tmp_path: Path, kind: str, num_files: int, num_labelled: int, capsys: pytest.CaptureFixture
) -> None:
    asked = ["phantom", "--kind", kind, "--out", str(tmp_path / "scans"), "--labelled", "1", "--unlabelled", "1"]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert "1 labelled and 1 unlabelled phantoms in" in printed
    command = shlex.split(printed[printed.index("raydiology ingest") :])
    ingest = parse(command[1:]).params
    studies = find_studies(ingest["source"], ingest["layout"], SourceOptions())
    assert {len(study.image) for study in studies} == {num_files}
    assert [study.label is not None or study.classes is not None for study in studies] == [
        *[True] * num_labelled,
        *[False] * num_labelled,
    ]
    assert len({study.patient for study in studies}) == 2
    assert {study.modality for study in studies} <= {None, RECIPES[ingest["recipe"]].modality}
