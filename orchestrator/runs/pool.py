"""Crew: jobs that do not depend on one another, several at once, each in a process of this machine."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator import stop
from orchestrator.stop import RunError
from orchestrator.terminal import progress

Result = TypeVar("Result")
LOOK_EVERY_S = 0.5
# A crew's workers only wait: the CPUs are for their trainings. Other machines may not have the runs' folders.
SLIVER = 0.001
NOTES = "progress"  # the folder in which each job reports its progress


class Worker:
    """Does one job after another, so that imports are paid for only once.

    folder  where the running job is asked to end early, by ``stop.mark``
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def do(self, place: int, job: Callable[[], Any]) -> Any:
        """Return a job's result."""
        note = Path(self.folder) / NOTES / f"{place:05d}.json"
        with progress.noted(note), ThreadPoolExecutor(1) as pool:
            working = pool.submit(job)
            while not wait([working], LOOK_EVERY_S).done:
                if stop.marked(self.folder):
                    stop.request()
        return working.result()


class Crew:
    """Idle workers, and busy workers by the reference to their job's result."""

    def __init__(self, size: int, folder: str) -> None:
        here = {f"node:{ray.util.get_node_ip_address()}": SLIVER}
        self._hire = partial(ray.remote(num_cpus=0, resources=here)(Worker).remote, folder)
        self.idle: list[Any] = [self._hire() for _ in range(size)]
        self.busy: dict[Any, tuple[int, Any]] = {}

    def begin(self, place: int, job: Callable[[], Any]) -> None:
        """Have an idle worker do a job."""
        worker = self.idle.pop()
        self.busy[worker.do.remote(place, job)] = place, worker

    def ended(self) -> Generator[tuple[int, Any]]:
        """Yield the results that arrive within a moment; a job that was asked to end early has no result."""
        for reference in ray.wait(list(self.busy), timeout=LOOK_EVERY_S)[0]:
            place, worker = self.busy.pop(reference)
            try:
                result = ray.get(reference)
            except RayTaskError as error:
                self.idle.append(worker)
                if not isinstance(error.cause, stop.StoppedError):
                    raise error.cause from None
            except RayError as error:
                self.idle.append(self._hire())
                yield (
                    place,
                    RunError(f"its process died: {str(error).splitlines()[0]} The same command goes on from there"),
                )
            else:
                self.idle.append(worker)
                yield place, result

    def dismiss(self) -> None:
        """End the workers' processes, and with them any unfinished jobs."""
        for worker in (*self.idle, *(worker for _, worker in self.busy.values())):
            ray.kill(worker)


def results(
    jobs: Sequence[Callable[[], Result]], concurrent: int, folder: Path, say: Callable[[str], None]
) -> Generator[tuple[int, Result | RunError]]:
    """Yield each job's place and result as it ends; RunError if its process died. One at a time, jobs run here.

    Raises what a job raises. A request to stop asks the running jobs to end early, and then StoppedError is raised;
    ``say`` tells a person of the request, and ``folder`` is where it is passed on.
    """
    if concurrent == 1:
        yield from ((place, job()) for place, job in enumerate(jobs))
        return
    stop.unmark(str(folder))
    waiting, crew = deque(enumerate(jobs)), Crew(min(concurrent, len(jobs)), str(folder))
    try:
        with stop.awaited(), progress.others(folder / NOTES, "*.json"):
            while crew.busy or (waiting and not stop.requested()):
                while crew.idle and waiting and not stop.requested():
                    crew.begin(*waiting.popleft())
                yield from crew.ended()
                stop.raise_if_insisted()
                if stop.requested() and not stop.marked(str(folder)):
                    say(stop.asked())
                    stop.mark(str(folder))
    finally:
        crew.dismiss()
        rmtree(folder / NOTES, ignore_errors=True)
    if stop.requested():
        raise stop.StoppedError(
            f"stopped with {len(waiting)} of {len(jobs)} not begun, as asked; the same command goes on from there"
        )
