"""Progress of an ingest: how many studies are done and quarantined. Only counts are shown."""

from collections.abc import Generator
from contextlib import contextmanager

from orchestrator.terminal import progress
from orchestrator.terminal.phase import Phase


class Tally:
    """Counts studies that are done and quarantined."""

    def __init__(self, num_studies: int) -> None:
        self._num_studies = num_studies
        self._done = self._quarantined = 0
        self._phase: Phase | None = None

    @contextmanager
    def shown(self) -> Generator[None]:
        """Show the counts while the body runs."""
        with progress.phase("ingest", self._num_studies, "study", self._done) as self._phase:
            yield
        self._phase = None

    def count(self, studies: int, quarantined: int) -> None:
        """Count the studies of a finished bundle; negative numbers take back a bundle that is run again."""
        self._done += studies
        self._quarantined += quarantined
        if self._phase:
            progress.update(self._phase, self._done, f"{self._quarantined} quarantined")
