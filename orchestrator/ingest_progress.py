"""Progress of an ingest: a bar on a terminal, otherwise a plain line now and then. Only counts are printed."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


class IngestProgress:
    """Counts studies that are done and rejected."""

    def __init__(self, num_studies: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._num_studies = num_studies
        self._done = self._rejected = 0
        self._printed = time.monotonic()
        columns = (TextColumn("ingest"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rejected]}"))
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal
        )
        self._task = self._bar.add_task("ingest", total=num_studies, rejected="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, studies: int, rejected: int) -> None:
        """Count the studies of a bundle that is done; negative numbers take one back that is done again."""
        self._done += studies
        self._rejected += rejected
        self._bar.update(self._task, completed=self._done, rejected=f"{self._rejected} quarantined")
        if not self._console.is_terminal and time.monotonic() - self._printed > LINE_EVERY_S:
            self._printed = time.monotonic()
            self._console.print(
                f"ingest: {self._done} of {self._num_studies} studies, {self._rejected} quarantined", highlight=False
            )
