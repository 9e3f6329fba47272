"""Pools: jobs at the same time, what they raise, one that dies, and those that are asked to end early."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError
from ray.tune.search import Searcher

from orchestrator import stop
from orchestrator.runs import pool
from orchestrator.runs.pool import Desk, JobQueue, Workload
from orchestrator.stop import RunError

Job = Callable[[], int]


@dataclass
class Owner:
    """The owner of some jobs, who keeps what becomes of them, and ends a job whose report is negative as pruned."""

    folder: Path
    jobs: list[Job]
    ended: dict[int, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    raises: type[Exception] | None = None

    def load(self) -> Workload:
        waiting = iter(range(len(self.jobs)))
        jobs, folder = self.jobs, self.folder
        return Workload(
            folder=folder,
            total=len(jobs),
            take=lambda: next(((place, "") for place in waiting), None),
            do=lambda place, _: stop.heeding(str(pool.place_of(folder, place)), jobs[place]).result(),
            ended=self._end,
            say=self.said.append,
            reported=lambda place, report: "pruned" if report["value"] < 0 else None,
        )

    def _end(self, place: int, result: Any) -> None:
        self.ended[place] = result
        if self.raises and isinstance(result, self.raises):
            raise result


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path / "table", [partial(int, place) for place in range(3)])


@pytest.fixture(autouse=True)
def withdrawn() -> Iterator[None]:
    yield
    stop.withdraw()


def meet(folder: Path, place: int, others: int) -> int:
    """Come to a folder and wait until all others are there."""
    (folder / str(place)).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < others:
        assert time.monotonic() < deadline, "nobody else came"
        time.sleep(0.05)
    return os.getpid()


def refuse() -> int:
    raise ValueError("no such thing")


def die() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def wait_until_asked(folder: Path) -> int:
    (folder / "began").touch()
    deadline = time.monotonic() + 60
    while not stop.requested():
        assert time.monotonic() < deadline, "never asked to end"
        time.sleep(0.05)
    raise stop.StoppedError("ended early")


def stop_when_begun(folder: Path, place: int) -> int:
    """Once another job has begun, ask the process that waits for both to end."""
    while not (folder / "began").exists():
        time.sleep(0.05)
    os.kill(int((folder / "driver").read_text()), signal.SIGTERM)
    return place


def reason(owner: Owner, place: int) -> str:
    return stop.marked(str(pool.place_of(owner.folder, place)))


def tuned(place: int, last: Any = None, error: Path | None = None) -> Any:
    """Return as much of Tune's trial as a desk looks at."""
    config, last_result = {"place": place, "details": ""}, {pool.RESULT: last}
    return Mock(spec=pool.TuneTrial, config=config, last_result=last_result, pickled_error_file=error)


def test_jobs_are_handed_out_in_order_with_earlier_requests_removed(owner: Owner) -> None:
    queue = JobQueue(Desk(owner.load()))
    stop.mark(str(pool.place_of(owner.folder, 1)))
    assert [queue.suggest(name) for name in "abc"] == [{"place": place, "details": ""} for place in range(3)]
    assert queue.suggest("d") == Searcher.FINISHED
    assert [reason(owner, place) for place in range(3)] == ["", "", ""]


def test_a_job_whose_owner_wants_it_ended_is_asked_for_the_owner_s_reason_that_stays(owner: Owner) -> None:
    desk = Desk(owner.load())
    queue = JobQueue(desk)
    queue.suggest("a")
    queue.suggest("b")
    desk.on_trial_result(0, [], tuned(0), {"value": 1.0})
    desk.on_trial_result(0, [], tuned(1), {"value": -1.0})
    assert (reason(owner, 0), reason(owner, 1)) == ("", "pruned")
    stop.request()
    desk.on_step_begin(0, [])
    desk.on_step_begin(1, [])
    assert (reason(owner, 0), reason(owner, 1)) == ("stopped", "pruned")
    assert owner.said == [stop.asked()]
    assert queue.suggest("c") == Searcher.FINISHED


def test_what_the_owner_raises_ends_the_other_jobs(owner: Owner) -> None:
    owner.raises = ValueError
    desk = Desk(owner.load())
    queue = JobQueue(desk)
    queue.suggest("a")
    queue.suggest("b")
    desk.on_trial_complete(0, [], tuned(0, ValueError("no such thing")))
    desk.on_step_begin(0, [])
    assert (reason(owner, 1), str(desk.error)) == ("stopped", "no such thing")
    assert queue.suggest("c") == Searcher.FINISHED


def test_a_process_that_dies_is_a_failure_in_words(owner: Owner, tmp_path: Path) -> None:
    desk = Desk(owner.load())
    (tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(ActorDiedError()))
    desk.on_trial_error(0, [], tuned(0, error=tmp_path / "error.pkl"))
    assert isinstance(owner.ended[0], RunError)
    assert str(owner.ended[0]).startswith("its process died: ")
    assert str(owner.ended[0]).endswith(" The same command goes on from there")


@pytest.mark.slow
def test_two_at_once_are_in_two_processes_that_go_on_to_the_next(tmp_path: Path, ray_cluster: Path) -> None:
    (meeting := tmp_path / "meeting").mkdir()
    owner = Owner(tmp_path / "table", [partial(meet, meeting, place, 2) for place in range(4)])
    pool.run(owner.load(), 2)
    assert sorted(owner.ended) == [0, 1, 2, 3]
    assert len(set(owner.ended.values())) == 2
    assert os.getpid() not in owner.ended.values()


@pytest.mark.slow
def test_what_a_job_raises_is_handed_over_and_one_that_dies_is_a_failure_and_the_others_go_on(
    tmp_path: Path, ray_cluster: Path
) -> None:
    owner = Owner(tmp_path / "table", [die, refuse, partial(meet, tmp_path, 1, 1), partial(meet, tmp_path, 2, 1)])
    pool.run(owner.load(), 2)
    assert isinstance(owner.ended[0], RunError)
    assert (type(owner.ended[1]), str(owner.ended[1])) == (ValueError, "no such thing")
    assert isinstance(owner.ended[2], int)
    assert isinstance(owner.ended[3], int)


@pytest.mark.slow
def test_an_error_that_the_owner_raises_is_raised_once_the_other_jobs_have_ended(
    tmp_path: Path, ray_cluster: Path
) -> None:
    owner = Owner(tmp_path / "table", [partial(wait_until_asked, tmp_path), refuse, refuse], raises=ValueError)
    with pytest.raises(ValueError, match=r"^no such thing$"):
        pool.run(owner.load(), 2)
    assert owner.ended.keys() == {0, 1}
    assert isinstance(owner.ended[0], stop.StoppedError)


@pytest.mark.slow
def test_sigterm_asks_the_jobs_that_run_to_end_early_and_begins_no_other(
    tmp_path: Path, ray_cluster: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stop, "_request", type(stop._request)())
    (tmp_path / "driver").write_text(str(os.getpid()))
    owner = Owner(
        tmp_path / "table", [partial(wait_until_asked, tmp_path), partial(stop_when_begun, tmp_path, 1), refuse]
    )
    pool.run(owner.load(), 2)
    assert (owner.ended.keys(), owner.ended[1]) == ({0, 1}, 1)
    assert isinstance(owner.ended[0], stop.StoppedError)
    assert owner.said == [
        "asked to stop (SIGTERM): saving a checkpoint, then ending; Ctrl-C ends at once, without one"
    ]
    assert stop.requested()
    assert "Trial" not in capfd.readouterr().out, "Tune says nothing itself"
