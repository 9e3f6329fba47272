"""The program `raydiology`, made of its commands."""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, cast

import typer
from typer import Context, Option
from typer.core import TyperGroup
from typer.main import get_command

from orchestrator.commands import initial, jobs, machine, results, scans, training, usage
from orchestrator.terminal.console import NAME

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(name=NAME, cls=usage.Program, rich_markup_mode=None, context_settings=HELP)
for subject in (scans, initial, training, results, jobs, machine):
    app.add_typer(subject.app)


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{NAME} {version('raydiology')}\n")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[bool, Option("--version", callback=_show_version, help="Show the version and exit.")] = False,
) -> None:
    """Pretrain on medical images, and find out which pretraining was worth it."""


@cache
def program() -> TyperGroup:
    """Return the whole command line."""
    return cast(TyperGroup, get_command(app))


def commands() -> Mapping[str, Any]:
    """Return all commands by their names."""
    return program().commands


def parse(words: Sequence[str]) -> Context:
    """Return the context of the command that a command line names; raise UsageError for a mistake."""
    return usage.parse(program(), words)
