"""A sweep as a pool's jobs: points that can work, what becomes of trials, and when the whole sweep must end."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.pool import Workload
from orchestrator.stop import RunError
from orchestrator.sweeps import sweep as sweeps
from orchestrator.sweeps import trial as trials
from orchestrator.sweeps.study import Ending, Ledger, pruner
from orchestrator.terminal.phase import Phase
from tests.orchestrator.sweeps.test_sweep import write_sweep
from tests.shardsets import write_slices


@dataclass
class Desk:
    """A sweep over four seeds, of which 1 and 2 cannot work, with what it has said and told MLflow."""

    load: Workload
    ledger: Ledger
    said: list[str] = field(default_factory=list)
    closed: list[tuple[int, str]] = field(default_factory=list)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    changes = {
        "scheduler": {"name": "asha", "grace": 2, "reduction_factor": 2},
        "search": {"name": "grid"},
        "trials": None,
        "space": {"seed": {"choice": [0, 1, 2, 3]}},
    }
    shards = write_slices(tmp_path / "slices", num_patients=4, size=40)
    sweep = sweeps.load(write_sweep(tmp_path, shards, **changes))

    def check(sweep: sweeps.Sweep, point: dict[str, int]) -> None:
        if point["seed"] in (1, 2):
            raise ValueError(f"seed {point['seed']}\n cannot work")

    said, closed = list[str](), list[tuple[int, str]]()
    monkeypatch.setattr(sweeps, "check_point", check)
    monkeypatch.setattr(trials, "opened", lambda trial: None)
    monkeypatch.setattr(trials, "closed", lambda trial, tracker, end: closed.append((trial.number, end.reason)))
    ledger = Ledger(sweep.folder, sweep.config, {"seed": 0}, pruner(sweep.config.scheduler, 60))
    return Desk(sweeps.workload(sweep, ledger, Phase("sweep", 4), said.append), ledger, said, closed)


@pytest.mark.slow
def test_points_that_cannot_work_fail_in_words_and_the_next_is_handed_out(desk: Desk) -> None:
    assert [desk.load.take() for _ in range(3)] == [
        (0, '{"point": {"seed": 0}}'), (3, '{"point": {"seed": 3}}'), None,
    ]  # fmt: skip
    assert desk.closed == [(1, "seed 1 cannot work"), (2, "seed 2 cannot work")]
    assert desk.said == [
        "1 of 4: trial 1: seed 1: failed: seed 1 cannot work",
        "2 of 4: trial 2: seed 2: failed: seed 2 cannot work",
    ]


@pytest.mark.slow
def test_what_a_trial_returns_is_how_it_ended(desk: Desk) -> None:
    desk.load.take()
    desk.load.ended(0, Ending("done", 0.75, run="pretrain-1"))
    (standing,) = desk.ledger.standings()
    assert (standing.state, standing.value, standing.run) == ("done", 0.75, "pretrain-1")
    assert (desk.closed, desk.said) == ([], ["1 of 4: trial 0: seed 0: collapse 0.7500"])


@pytest.mark.slow
def test_a_trial_whose_process_fails_is_a_failed_trial_with_the_words_of_the_error(desk: Desk) -> None:
    desk.load.take()
    for error, reason in (
        (OSError("no space left on device"), "its process failed: OSError: no space left on device"),
        (RunError("its process died: killed"), "its process died: killed"),
    ):
        desk.load.ended(0, error)
        assert desk.ledger.standings()[0].state == "failed"
        assert desk.closed.pop() == (0, reason)


def test_a_trial_that_falls_behind_must_end_as_pruned(desk: Desk) -> None:
    for _ in range(2):
        desk.load.take()
    reports = [(0, 1, 0.1), (0, 2, 0.1), (3, 1, 0.5), (3, 2, 0.5)]  # lower is better
    told = [desk.load.reported(number, {"step": step, "value": value}) for number, step, value in reports]
    assert told == [None, None, None, "pruned"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gp", "cmaes", "nsga2"])
def test_a_sweep_that_is_killed_after_each_trial_ends_with_the_standings_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sweeps, "check_point", lambda sweep, point: None)
    shards = write_slices(tmp_path / "slices", num_patients=4, size=40)
    changes = {
        "search": {"name": name, "startup": 3, "population": 3},
        "space": {"optimiser.lr": {"log_uniform": [0.001, 1]}, "optimiser.weight_decay": {"uniform": [0, 1]}},
        "trials": 7,
    }
    whole, cut = (_walked(tmp_path / folder, shards, changes, folder == "cut") for folder in ("whole", "cut"))
    assert whole == cut
    assert whole.startswith("# Which interval?")
    assert whole.count("| done | ") == 7


def _walked(folder: Path, shards: str, changes: dict[str, Any], killed: bool) -> str:
    """Run a sweep whose trials only compute a number, in one piece or opened again for each; return its standings."""
    folder.mkdir()
    path = write_sweep(folder, shards, **changes)

    def opened() -> Workload:
        sweep = sweeps.load(path)
        ledger = Ledger(sweep.folder, sweep.config, sweep.base.model_dump(mode="json"))
        return sweeps.workload(sweep, ledger, Phase("sweep", 7), lambda text: None)

    load = opened()
    for _ in range(7):
        taken = load.take()
        if killed:  # in the middle of the trial
            load = opened()
            assert load.take() == taken
        assert isinstance(taken, tuple)
        point = json.loads(taken[1])["point"]
        value = abs(math.log10(point["optimiser.lr"]) + 1.5) + point["optimiser.weight_decay"]
        load.ended(taken[0], Ending("done", value))
    assert load.take() is None
    return (sweeps.load(path).folder / "sweep.md").read_text()


@pytest.mark.slow
def test_a_metric_that_no_trial_can_have_ends_the_sweep(desk: Desk) -> None:
    desk.load.take()
    reason = "objective.metric 'rankme' is not one of ['collapse', 'loss']; name one of them"
    with pytest.raises(ValueError, match=r"'rankme' is not one of .*; name one of them"):
        desk.load.ended(0, Ending("failed", reason=reason, hopeless=True))
