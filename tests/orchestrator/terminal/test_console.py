"""Printed commands can be typed as they are printed, however the program was called."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.provenance import as_in_job
from orchestrator.terminal.console import Terminal, as_called, program, typed

BIN = Path(sys.executable).parent


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Be a process that a shell started by the script's path, in whose PATH the script is not."""
    monkeypatch.setattr(sys, "argv", [str(BIN / "raydiology"), "ui"])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, str(BIN / "raydiology"), "ui"])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return monkeypatch


def test_a_command_begins_with_the_path_that_was_typed_where_the_shell_does_not_find_the_name(
    called: pytest.MonkeyPatch,
) -> None:
    called.setattr(sys, "argv", [".venv/bin/raydiology", "ui"])
    assert as_called("MLflow: raydiology ui --home runs") == "MLflow: .venv/bin/raydiology ui --home runs"


def test_a_path_with_a_space_is_quoted(called: pytest.MonkeyPatch) -> None:
    called.setattr(sys, "argv", ["my env/raydiology"])
    assert as_called("`raydiology shards verify`") == "`'my env/raydiology' shards verify`"


def test_a_command_begins_with_the_name_where_the_shell_finds_it(called: pytest.MonkeyPatch) -> None:
    called.setenv("PATH", f"{BIN}{os.pathsep}/usr/bin")
    assert as_called("`raydiology ui` shows it") == "`raydiology ui` shows it"


def test_a_module_is_called_as_a_module(called: pytest.MonkeyPatch) -> None:
    called.setattr(sys, "orig_argv", ["bin/python", "-m", "orchestrator.cli", "table"])
    assert program() == "bin/python -m orchestrator.cli"


def test_a_job_names_commands_for_the_machine_that_its_output_is_read_on(called: pytest.MonkeyPatch) -> None:
    with as_in_job():
        assert program() == "raydiology"


@pytest.mark.parametrize(
    "text", ["/home/ray/raydiology --x", "Raydiology reads", "raydiology-s3 is a secret", "experiment raydiology: 3"]
)
def test_what_is_no_command_stays_as_it_is(text: str, called: pytest.MonkeyPatch) -> None:
    assert as_called(text) == text


def test_everything_that_a_terminal_prints_is_as_called(called: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    Terminal(file=written, width=200).print("see `raydiology methods`", "and `raydiology schema`", highlight=False)
    assert written.getvalue().strip() == f"see `{BIN}/raydiology methods` and `{BIN}/raydiology schema`"


@pytest.mark.slow
def test_the_command_of_a_message_works_as_it_is_printed(tmp_path: Path) -> None:
    """In a shell that does not know the name, as the one that has just run `make demo`."""
    bare = {**os.environ, "PATH": "/usr/bin:/bin"}
    script = os.path.relpath(BIN / "raydiology", tmp_path)
    told = subprocess.run(
        [script, "shards", "show", "none"], cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 2
    printed = told.stderr.split("`")[1]
    assert printed == f"{shlex.quote(script)} ingest"
    again = subprocess.run(
        f"{printed} --help", cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=120, shell=True
    )
    assert again.returncode == 0
    assert f"`{script} methods`" in " ".join(again.stdout.split())


def test_a_path_is_typed_relative_to_this_folder_and_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(tmp_path / "my runs") == "'my runs'"
    assert typed("/elsewhere/runs") == "/elsewhere/runs"
