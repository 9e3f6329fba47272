"""Pool: jobs that do not depend on one another, several at once, each in a process of its own, by Ray Tune.

Tune starts the processes and carries their reports. It never ends a job, because it would kill the job's process and
strand its Train workers. Instead a job is asked to end by a marker in its folder (``orchestrator.stop``), and ends
normally. What must outlast the pool its owner keeps, so Tune's own snapshots are not needed, and are thrown away.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from ray import cloudpickle, tune
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from orchestrator import stop
from orchestrator.cluster.hosts import resources_of_a_job
from orchestrator.stop import RunError
from orchestrator.terminal import progress

PLACES, NOTE = "trials", "progress.json"  # a job's folder, and the note of its progress in it
RESULT = "result"
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The first Ctrl-C asks jobs to end (``orchestrator.stop``); Tune's own handler would kill them.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


Later = Literal["later"]


@dataclass(frozen=True)
class Workload:
    """At most ``total`` jobs, and the functions of their owner; ``do`` alone is called in a process of the pool.

    folder    holds the folders of the jobs
    take      hand out the next job as its place and its details; None if there is none, or "later" if it waits for
              jobs that run
    do        do a job
    ended     take a job's result or the error that ended it: StoppedError if it was asked to end, RunError if its
              process died; an error that ``ended`` raises ends the other jobs too
    reported  take what a job has reported by ``tune.report``; return a reason to end it early, if there is one
    say       tell a person
    """

    folder: Path
    total: int
    take: Callable[[], tuple[int, str] | Later | None]
    do: Callable[[int, str], Any]
    ended: Callable[[int, Any], None]
    say: Callable[[str], None]
    reported: Callable[[int, dict[str, Any]], stop.Reason | None] = lambda place, report: None


def place_of(folder: Path, place: int) -> Path:
    """Return the folder of a job, where it is asked to end and its progress is noted."""
    return folder / PLACES / f"{place:03d}"


class Desk(tune.Callback):
    """Takes what jobs report and how they end, and asks them to end."""

    def __init__(self, load: Workload) -> None:
        self.load = load
        self.running: set[int] = set()
        self.error: Exception | None = None
        self.said = False

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Check for a request once per turn of Tune's loop."""
        stop.raise_if_insisted()
        if stop.requested() and not self.said:
            self.said = True
            self.load.say(stop.asked())
        if self.closed:
            for place in self.running:
                self._ask_to_end(place, "stopped")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Have the owner decide on a report."""
        place = trial.config["place"]
        if RESULT not in result and (reason := self._told(self.load.reported, place, result)):
            self._ask_to_end(place, reason)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Hand over a job's result."""
        self._end(trial.config["place"], trial.last_result[RESULT])

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Hand over what ended a job."""
        path = trial.pickled_error_file
        error = cloudpickle.loads(Path(path).read_bytes()) if path else "for an unknown reason."
        if isinstance(error, RayTaskError):
            self._end(trial.config["place"], error.cause)
        else:
            died = f"its process died: {str(error).splitlines()[0]} The same command goes on from there"
            self._end(trial.config["place"], RunError(died))

    @property
    def closed(self) -> bool:
        """Tell whether no further job may begin."""
        return stop.requested() or self.error is not None

    def _ask_to_end(self, place: int, reason: stop.Reason) -> None:
        stop.mark(str(place_of(self.load.folder, place)), reason)

    def _end(self, place: int, result: Any) -> None:
        self.running.discard(place)
        self._told(self.load.ended, place, result)

    def _told(self, owner: Callable[[int, Any], Any], place: int, what: Any) -> Any:
        """Return what the owner answers; Tune would swallow what it raises."""
        try:
            return owner(place, what)
        except Exception as error:  # noqa: BLE001 (an owner may use any library; it is raised in the end)
            self.error = self.error or error

    def __getstate__(self) -> dict[str, Any]:
        return {}


class JobQueue(Searcher):
    """Hands jobs to Tune."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.desk = desk

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hand out the next job, or say that there is none."""
        if self.desk.closed or (taken := self.desk.load.take()) is None:
            return Searcher.FINISHED
        if taken == "later":  # where nothing runs, what it waits for has failed
            return None if self.desk.running else Searcher.FINISHED
        place, details = taken
        stop.unmark(str(place_of(self.desk.load.folder, place)))
        self.desk.running.add(place)
        return {"place": place, "details": details}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Leave it to the desk."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the owner keeps what must outlast the pool."""

    def restore(self, checkpoint_path: str) -> None:
        """Keep nothing: the owner keeps what must outlast the pool."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Keep nothing: the owner keeps what must outlast the pool."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _work(do: Callable[[int, str], Any], folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a process of the pool."""
    stop.withdraw()  # the previous job of this process may have been asked to end
    place = settings["place"]
    with progress.noted(place_of(folder, place) / NOTE):
        try:
            return {RESULT: do(place, settings["details"])}
        except stop.StoppedError as stopped:
            return {RESULT: stopped}  # raised, it would cost the process


def run(load: Workload, concurrent: int) -> None:
    """Do all jobs, ``concurrent`` at once.

    After a request to stop no job begins, and those that run are asked to end early. The same follows an error that
    the owner raises, which is raised here when the last job has ended.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # it names by their ids what failed
    desk = Desk(load)
    with stop.awaited(), TemporaryDirectory() as kept, progress.others(load.folder, f"{PLACES}/*/{NOTE}"):
        tune.Tuner(
            tune.with_resources(
                partial(_work, load.do, load.folder), resources_of_a_job(load.folder, concurrent, load.say)
            ),
            tune_config=tune.TuneConfig(
                search_alg=JobQueue(desk),
                num_samples=load.total,
                max_concurrent_trials=concurrent,
                reuse_actors=True,  # importing everything takes a process longer than training takes many a job
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(storage_path=kept, name="tune", verbose=0, callbacks=[desk]),
        ).fit()
    stop.raise_if_insisted()  # pressed while the last jobs ended
    if desk.error:
        raise desk.error
