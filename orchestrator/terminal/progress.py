"""Progress: show what this process works on, from anywhere in it, on the display that it has at the moment.

A process that works for another process writes its phases into a note, a small file, and the other process shows them
beside its own. Nothing heavy is imported here, because a command's first phase is loading everything else.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.terminal.console import Terminal
from orchestrator.terminal.display import Display
from orchestrator.terminal.phase import Phase

console = Terminal(stderr=True)
_display = Display(console)


@contextmanager
def showing_on(display: Display) -> Generator[Display]:
    """Show everything in this process on another display while the body runs."""
    global _display
    before, _display = _display, display
    try:
        yield display
    finally:
        _display = before


@contextmanager
def phase(
    what: str, total: int | None = None, unit: str = "step", done: int = 0, short: str = ""
) -> Generator[Phase]:
    """Show a phase while the body runs."""
    with _display.phase(what, total, unit, done, short) as begun:
        yield begun


def update(phase: Phase, done: int | None = None, shown: str | None = None) -> None:
    """Say how far a phase is."""
    _display.update(phase, done, shown)


def say(text: str, style: str | None = None) -> None:
    """Print a line that stays, in this process or in the one that it works for."""
    _display.say(text, style)


@contextmanager
def others(folder: Path, pattern: str) -> Generator[None]:
    """Show the phases of other processes, whose notes are the files that match, while the body runs."""
    with _display.others(folder, pattern):
        yield


@contextmanager
def noted(path: Path) -> Generator[None]:
    """Write this process's phases into a note for another process while the body runs."""
    with _display.noted(path):
        yield
