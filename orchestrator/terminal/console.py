"""Terminal: the console of all commands; a command in a message can be typed exactly as it is printed.

Messages name commands as `raydiology ...`. In a shell in which `.venv` is not active, that is "command not found", so
printed commands begin as this process was called, for example `.venv/bin/raydiology ...`.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.provenance import in_job

NAME, MODULE = "raydiology", "orchestrator.cli"
# The name before a verb or an option, not as part of a path, a link or another name.
_COMMAND = re.compile(rf"(?<![\w./-]){NAME}(?= [a-z-])")


class Terminal(Console):
    """A console whose text names commands as this process was called."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as a console does."""
        super().print(*(as_called(one) if isinstance(one, str) else one for one in objects), **options)


def as_called(text: str) -> str:
    """Rewrite every `raydiology ...` command of a text to begin as this process was called."""
    return _COMMAND.sub(lambda _: program(), text)


def program() -> str:
    """Return the word to type for `raydiology` in the shell that started this process.

    That is the plain name if the shell finds it, and also in a job, whose output is read on another machine.
    """
    if in_job():
        return NAME
    if sys.orig_argv[1:3] == ["-m", MODULE]:
        return shlex.join(sys.orig_argv[:3])
    called = Path(sys.argv[0])
    if called.name != NAME or _found_by_name(called):
        return NAME
    return shlex.quote(str(called))


def typed(path: str | Path) -> str:
    """Return a path as a person would type it here: relative if it lies below this folder, and quoted."""
    here = Path.cwd()
    path = Path(path)
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _found_by_name(script: Path) -> bool:
    """Return whether the shell finds this script by its name alone."""
    found = shutil.which(NAME)
    return found is not None and script.exists() and Path(found).samefile(script)
