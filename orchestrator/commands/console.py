"""Everything that commands share: printing, and exit codes."""

from contextlib import AbstractContextManager
from pathlib import Path

from orchestrator.terminal import progress
from orchestrator.terminal.console import Terminal, typed
from orchestrator.terminal.phase import Phase

FAILED, REFUSED = 1, 2

out = Terminal()
err = progress.console


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
