"""What commands share: where they print, how they are added, exit codes."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager

from orchestrator import progress
from orchestrator.progress import Phase
from orchestrator.terminal import Terminal

FAILED, REFUSED, INTERRUPTED, STOPPED = 1, 2, 130, 143

out = Terminal()
err = progress.console
Commands = argparse._SubParsersAction


def add_command(commands: Commands, name: str, help_: str, run: Callable) -> argparse.ArgumentParser:
    """Add a command; ``run`` takes the parsed arguments and returns an exit code, or None for 0."""
    parser = commands.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def say(text: str) -> None:
    """Print a line of progress, as it is."""
    progress.say(text)


def loading() -> AbstractContextManager[Phase]:
    """Show that what a command needs is being imported, which takes seconds."""
    return progress.phase("loading PyTorch and Ray")
