"""What commands share: where they print, how they are added, exit codes."""

import argparse
from collections.abc import Callable

from orchestrator.terminal import Terminal

FAILED, REFUSED, INTERRUPTED, STOPPED = 1, 2, 130, 143

out = Terminal()
err = Terminal(stderr=True)
Commands = argparse._SubParsersAction


def add_command(commands: Commands, name: str, help_: str, run: Callable) -> argparse.ArgumentParser:
    """Add a command; ``run`` takes the parsed arguments and returns an exit code, or None for 0."""
    parser = commands.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def say(text: str) -> None:
    """Print a line of progress, as it is."""
    err.print(text, highlight=False, markup=False, soft_wrap=True)
