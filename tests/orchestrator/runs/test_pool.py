"""Crews: jobs at the same time, what they raise, one that dies, and one that is asked to end early."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from orchestrator import stop
from orchestrator.runs import pool
from orchestrator.stop import RunError


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
    """The last of two jobs: once the other has begun, ask the process that waits for both to end."""
    while not (folder / "began").exists():
        time.sleep(0.05)
    os.kill(int((folder / "driver").read_text()), signal.SIGTERM)
    return place


def test_one_at_a_time_runs_here_in_order(tmp_path: Path) -> None:
    jobs = [partial(meet, tmp_path, place, 1) for place in range(3)]
    assert list(pool.results(jobs, 1, tmp_path, print)) == [(place, os.getpid()) for place in range(3)]


@pytest.mark.slow
def test_two_at_once_are_in_two_processes_that_go_on_to_the_next(tmp_path: Path, ray_cluster: Path) -> None:
    (meeting := tmp_path / "meeting").mkdir()
    jobs = [partial(meet, meeting, place, 2) for place in range(4)]
    found = dict(pool.results(jobs, 2, tmp_path / "table", print))
    assert sorted(found) == [0, 1, 2, 3]
    assert len(set(found.values())) == 2
    assert os.getpid() not in found.values()


@pytest.mark.slow
def test_what_a_job_raises_is_raised_and_one_that_dies_is_a_failure(tmp_path: Path, ray_cluster: Path) -> None:
    found = dict(pool.results([die, partial(meet, tmp_path, 1, 1)], 2, tmp_path / "table", print))
    assert isinstance(found[0], RunError)
    assert str(found[0]).startswith("its process died: ")
    assert isinstance(found[1], int)
    with pytest.raises(ValueError, match=r"^no such thing$"):
        list(pool.results([refuse, refuse], 2, tmp_path / "table", print))


@pytest.mark.slow
def test_sigterm_asks_the_jobs_that_run_to_end_early_and_begins_no_other(
    tmp_path: Path, ray_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "_request", type(stop._request)())
    said = list[str]()
    (tmp_path / "driver").write_text(str(os.getpid()))
    jobs = [partial(wait_until_asked, tmp_path), partial(stop_when_begun, tmp_path, 1), refuse]
    found: list[tuple[int, int | RunError]] = []
    with pytest.raises(stop.StoppedError, match=r"^stopped with 1 of 3 not begun, as asked"):
        found.extend(pool.results(jobs, 2, tmp_path / "table", said.append))
    assert found == [(1, 1)]
    assert said == ["asked to stop (SIGTERM): saving a checkpoint, then ending; Ctrl-C ends at once, without one"]
