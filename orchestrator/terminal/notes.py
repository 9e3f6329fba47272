"""Notes: small files in which a process that works for another one writes its phases, for the other to show."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from orchestrator.terminal.phase import Phase


@dataclass(frozen=True)
class Note:
    """Another process's phases, and the lines that it wants printed.

    path   the note's file
    about  the process's name
    over   whether it has ended
    """

    path: Path
    phases: tuple[Phase, ...]
    said: tuple[str, ...]
    about: str
    over: bool

    @property
    def name(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Others:
    """Processes that work for this one: their notes are the files of a folder that match a pattern."""

    folder: Path
    pattern: str

    def notes(self) -> list[Note]:
        """Return the notes of the processes that are alive."""
        found = []
        for path in sorted(self.folder.glob(self.pattern)):
            try:
                note = json.loads(path.read_text())
            except FileNotFoundError:
                continue  # the process has just ended
            if note["over"] or psutil.pid_exists(note["pid"]):
                phases = (Phase(**phase | {"counted": tuple(phase["counted"])}) for phase in note["phases"])
                found.append(Note(path, tuple(phases), tuple(note["said"]), note["about"], note["over"]))
        return found


def write_note(note: Note) -> None:
    """Write this process's note, so that a process that reads it never sees half of it."""
    phases = [asdict(phase) for phase in note.phases]
    content = {"pid": os.getpid(), "phases": phases, "said": note.said, "about": note.about, "over": note.over}
    temporary = note.path.with_suffix(".new")
    temporary.write_text(json.dumps(content))
    temporary.rename(note.path)
