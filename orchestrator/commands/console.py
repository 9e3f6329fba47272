"""Everything that commands share: printing, adding and reading commands, exit codes."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from data.spelling import did_you_mean
from orchestrator.terminal import progress
from orchestrator.terminal.console import Terminal, as_called, typed
from orchestrator.terminal.phase import Phase

FAILED, REFUSED = 1, 2

out = Terminal()
err = progress.console
Commands = argparse._SubParsersAction
Run = Callable[[argparse.Namespace], int | None]


class UsageError(ValueError):
    """A command line that cannot be read; the message says what was expected."""


class Parser(argparse.ArgumentParser):
    """A parser whose help names commands as this process was called."""

    def format_help(self) -> str:
        return as_called(super().format_help())

    def format_usage(self) -> str:
        return as_called(super().format_usage())


class Command(Parser):
    """The parser of a command. Options may be anywhere; mistakes raise UsageError.

    The command's function is kept beside the parsed arguments, where no argument can replace it.
    """

    run: Run

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if not self._between_passes:
            self._between_passes = True
            try:
                return self.parse_known_intermixed_args(args, namespace)
            finally:
                self._between_passes = False
        return super().parse_known_args(args, namespace)

    _between_passes = False

    @property
    def takes_job(self) -> bool:
        """Whether ``--`` and the command of a job may follow."""
        return any(action.dest == "job_command" for action in self._actions)

    def options(self) -> list[str]:
        """List the names of the command's options."""
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows what can be given")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action,
                f"there is no {value!r}{did_you_mean(str(value), choices)}; expected one of {', '.join(choices)}",
            )


def add_command(commands: Commands, name: str, help_: str, run: Run) -> Command:
    """Add a command; ``run`` takes the parsed arguments and returns an exit code, or None for 0."""
    parser: Command = commands.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
    parser.run = run
    return parser


def read(command: Command, words: Sequence[str]) -> argparse.Namespace:
    """Parse the words after a command's name; raise UsageError for unknown words."""
    arguments, unknown = command.parse_known_args(words)
    if unknown:
        option = unknown[0].partition("=")[0]
        what = "option" if option.startswith("-") else "further argument"
        near = did_you_mean(option, command.options()) if what == "option" else ""
        raise UsageError(f"no {what} {option}{near}; `{command.prog} --help` shows what can be given")
    return arguments


def say(text: str) -> None:
    """Print a line of progress, as it is."""
    progress.say(text)


def show_page(address: str, home: Path | None) -> None:
    """Print the address of MLflow's charts of some runs, below the command that serves them if nothing answers."""
    if home:
        out.print(f"MLflow: raydiology ui --home {typed(home)}", soft_wrap=True, highlight=False, markup=False)
    out.print(f"charts: {address}", soft_wrap=True, highlight=False, markup=False)


def loading() -> AbstractContextManager[Phase]:
    """Show that a command's dependencies are being imported, which takes seconds."""
    return progress.phase("loading PyTorch and Ray")


def say_next(command: str, word: str = "next") -> None:
    """Print the command that a person would type next."""
    out.print(f"{word}: {command}", soft_wrap=True, highlight=False, markup=False)
