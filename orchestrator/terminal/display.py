"""Display: phases as bars on a terminal, as occasional lines in a job's log, or as a note for another process."""

import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from orchestrator.terminal.notes import Note, Others, write_note
from orchestrator.terminal.phase import Phase

# In a log: often enough to see progress, and seldom enough for trainings of days.
LINE_EVERY_S, EARLY_S, LATER_LINE_EVERY_S = 10.0, 120.0, 60.0
LOOK_EVERY_S = 0.5
BAR_WIDTH = 24
STARTING = "starting processes"


class Display:
    """Shows phases on a console, or writes them into a note.

    Code that prints on a terminal waits for the bars, and drawing the bars waits for the lock. So code that holds the
    lock must not print on a terminal.
    """

    def __init__(self, console: Console, line_every_s: float = LINE_EVERY_S) -> None:
        self.console = console
        self.line_every_s = line_every_s
        self.note: Path | None = None
        self._phases: list[Phase] = []
        self._others: list[Others] = []
        self._said: list[str] = []
        self._about = ""
        self._heard: dict[str, int] = {}
        self._told: dict[str, dict[str, float]] = {}
        self._noted_s = 0.0
        self._lock = threading.RLock()
        self._listening = threading.Lock()
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None

    @property
    def on_terminal(self) -> bool:
        """Tell whether the console is a terminal, where bars can move."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    @contextmanager
    def phase(
        self, what: str, total: int | None = None, unit: str = "step", done: int = 0, short: str = ""
    ) -> Generator[Phase]:
        """Show a phase while the body runs."""
        phase = Phase(what, total, unit, done, short=short)
        self._begin(phase)
        try:
            yield phase
        finally:
            self._end(phase)

    def update(self, phase: Phase, done: int | None = None, shown: str | None = None) -> None:
        """Say how far a phase is."""
        with self._lock:
            if done is not None and done != phase.done:
                phase.done, phase.updated_s = done, time.time()
            phase.shown = phase.shown if shown is None else shown
            if self.note and time.time() - self._noted_s >= LOOK_EVERY_S:
                self._write_note()

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line that stays."""
        with self._lock:
            if self.note:
                self._said.append(text)
                self._write_note()
                return
            others = list(self._others)
        self._listen(others)  # what is said now may be about them
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def others(self, folder: Path, pattern: str) -> Generator[None]:
        """Show the phases of other processes while the body runs."""
        others = Others(folder, pattern)
        with self._lock:
            self._others.append(others)
        try:
            yield
        finally:
            with self._lock:
                self._others.remove(others)
            self._listen([others])

    @contextmanager
    def noted(self, path: Path) -> Generator[None]:
        """Write phases into a note for another process while the body runs, in place of showing them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.note, self._said, self._about = path, [], ""
        try:
            self._write_note()
            yield
        finally:
            # The last lines may not have been read yet; the process that reads them removes the note.
            if self._said:
                self._write_note(over=True)
            else:
                path.unlink(missing_ok=True)
            self.note = None

    def render(self) -> Table:
        """Return what the terminal shows: a line for each phase, here and in other processes."""
        with self._lock:
            phases, others, now_s = list(self._phases), list(self._others), time.time()
        notes = [note for one in others for note in one.notes() if note.phases]
        grid = Table.grid(padding=(0, 1))
        grid.add_column(max_width=max(20, self.console.width // 3))
        for phase in phases:
            grid.add_row(*self._bar(phase, phase.name, phase.details(now_s)))
        for note in notes:
            first, last = note.phases[0], note.phases[-1]
            inner = first.details(now_s) if last is first else [last.text(now_s)]
            grid.add_row(*self._bar(last, first.name, inner))
        if others and not notes:
            grid.add_row(Text(STARTING), self._spinner)
        return grid

    def _begin(self, phase: Phase) -> None:
        with self._lock:
            self._phases.append(phase)
            if self.note:
                self._about = self._about or phase.name
                self._write_note()
                return
            first = len(self._phases) == 1
            if not self.on_terminal:
                self._print("", [phase])
        if first:
            self._start()

    def _end(self, phase: Phase) -> None:
        with self._lock:
            self._phases = [one for one in self._phases if one is not phase]
            if self.note:
                self._write_note()
                return
            last = not self._phases
        if last:
            self._stop()

    def _start(self) -> None:
        if self.on_terminal:
            # Output that goes to a file must not be drawn above the bars instead.
            self._live = Live(
                get_renderable=self.render,
                console=self.console,
                transient=True,
                refresh_per_second=4,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start(refresh=True)
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, args=(self._over,), name="progress", daemon=True)
        self._ticker.start()

    def _stop(self) -> None:
        self._over.set()
        if self._ticker:
            self._ticker.join()
        if self._live:
            self._live.stop()
        self._live = self._ticker = None
        self._told = {}

    def _tick(self, over: threading.Event) -> None:
        while not over.wait(min(LOOK_EVERY_S, self.line_every_s)):
            with self._lock:
                phases, others = list(self._phases), list(self._others)
            notes = self._listen(others)
            if self.on_terminal or not phases:
                continue
            if self._due("", phases[-1]):
                self._print("", phases)
            for note in notes:
                if note.phases and self._due(note.name, note.phases[-1]):
                    self._print(note.name, note.phases)

    def _listen(self, others: Sequence[Others]) -> list[Note]:
        """Read the notes of other processes, print their new lines, and return the notes."""
        with self._listening:
            notes = [note for one in others for note in one.notes()]
            for note in notes:
                self._hear(note)
        return notes

    def _hear(self, note: Note) -> None:
        """Print another process's new lines."""
        about = f"{note.about}: " if note.about else ""
        for text in note.said[self._heard.get(note.name, 0) :]:
            self.console.print(f"{about}{text}", highlight=False, markup=False, soft_wrap=True)
        self._heard[note.name] = 0 if note.over else len(note.said)
        if note.over:
            note.path.unlink(missing_ok=True)

    def _due(self, name: str, phase: Phase) -> bool:
        """Tell whether a log wants a line of a process: its phase has just begun, or none was printed for a while."""
        told = self._told.get(name, {})
        early = time.time() - phase.began_s < EARLY_S
        every_s = self.line_every_s if early else max(self.line_every_s, LATER_LINE_EVERY_S)
        return (name != "" and phase.what not in told) or time.time() - max(told.values(), default=0.0) >= every_s

    def _print(self, name: str, phases: Sequence[Phase]) -> None:
        now_s = time.time()
        for phase in phases:
            self._told.setdefault(name, {})[phase.what] = now_s
        *outer, newest = phases
        told = [phase.text(now_s) if phase.total else phase.name for phase in outer]
        self.console.print("; ".join([*told, newest.text(now_s)]), highlight=False, markup=False, soft_wrap=True)

    def _write_note(self, over: bool = False) -> None:
        assert self.note is not None
        self._noted_s = time.time()
        write_note(Note(self.note, () if over else tuple(self._phases), tuple(self._said), self._about, over))

    def _bar(self, phase: Phase, name: str, details: Sequence[str]) -> tuple[Text, ProgressBar | Spinner, Text]:
        moving = ProgressBar(phase.total, phase.done, width=BAR_WIDTH) if phase.total else self._spinner
        return Text(name, no_wrap=True, overflow="ellipsis"), moving, Text(", ".join(details))
