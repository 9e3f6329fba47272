"""What Ray Tune is told: points that can work, always to continue, and nothing more once a sweep must end."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from orchestrator import stop
from orchestrator.sweeps.ray_tune import Hooks, Points, Pruner, StopRelay
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.sweeps.study import Ending, Ledger

CONFIG = SweepConfig.model_validate(
    {
        "name": "seeds",
        "title": "Seeds",
        "experiment": "experiment.yaml",
        "objective": {"metric": "score"},
        "search": {"name": "grid"},
        "scheduler": {"name": "asha", "grace": 2, "reduction_factor": 2},
        "space": {"seed": {"choice": [0, 1, 2, 3]}},
    }
)


class Desk:
    """Hears what the sweep's hooks hear; points with seed 1 and 2 cannot work."""

    def __init__(self) -> None:
        self.ended: list[tuple[int, str, str, bool]] = []
        self.asked: list[tuple[int, str]] = []
        self.said: list[str] = []

    def hooks(self) -> Hooks:
        return Hooks(
            work=lambda number, point: Ending("done", 0.0),
            refusal=lambda point: f"seed {point['seed']} cannot work" if point["seed"] in (1, 2) else None,
            ask_to_end=lambda number, state: self.asked.append((number, state)),
            ended=lambda number, ending, told: self.ended.append((number, ending.state, ending.reason, told)),
            say=self.said.append,
        )


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def points(tmp_path: Path, desk: Desk) -> Points:
    return Points(Ledger(tmp_path / "sweep", CONFIG, {"seed": 0}), desk.hooks())


def result(ending: Ending) -> dict[str, Any]:
    return asdict(ending)


def trial(number: int) -> Any:
    return SimpleNamespace(config={"number": number}, error_file=None)


def test_points_that_cannot_work_fail_in_words_and_the_next_is_handed_out(points: Points, desk: Desk) -> None:
    assert points.suggest("a") == {"number": 0, "point": '{"seed": 0}'}
    assert points.suggest("b") == {"number": 3, "point": '{"seed": 3}'}
    assert desk.ended == [
        (1, "failed", "seed 1 cannot work", False), (2, "failed", "seed 2 cannot work", False),
    ]  # fmt: skip
    assert points.suggest("c") == Searcher.FINISHED


def test_what_a_trial_returns_is_how_it_ended(points: Points, desk: Desk) -> None:
    points.suggest("a")
    points.on_trial_complete("a", result(Ending("done", 0.75, run="finetune-1")))
    (standing,) = points.ledger.standings()
    assert (standing.state, standing.value, standing.run) == ("done", 0.75, "finetune-1")
    assert desk.ended == [(0, "done", "", True)]


def test_a_process_that_fails_is_a_failed_trial_with_the_last_words_it_said(
    points: Points, desk: Desk, tmp_path: Path
) -> None:
    points.suggest("a")
    (tmp_path / "error.txt").write_text("Traceback\n  File ...\nOSError: no space left on device\n\n")
    Pruner(points).on_trial_error(None, SimpleNamespace(error_file=str(tmp_path / "error.txt")))
    points.on_trial_complete("a", error=True)
    assert desk.ended == [(0, "failed", "its process failed: OSError: no space left on device", False)]


def test_a_trial_that_falls_behind_is_asked_to_end_while_tune_is_told_to_go_on(points: Points, desk: Desk) -> None:
    pruner = Pruner(points)
    points.suggest("a")
    points.suggest("b")
    reports = [(0, 1, 0.5), (0, 2, 0.5), (3, 1, 0.1), (3, 2, 0.1)]
    told = [pruner.on_trial_result(None, trial(n), {"step": step, "value": value}) for n, step, value in reports]
    assert told == ["CONTINUE"] * 4
    assert desk.asked == [(3, "pruned")]


def test_a_sweep_that_is_asked_to_stop_asks_its_trials_and_hands_out_no_more(
    points: Points, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    points.suggest("a")
    monkeypatch.setattr(stop, "requested", lambda: True)
    watch = StopRelay(points)
    watch.on_step_begin(0, [])
    watch.on_step_begin(1, [])
    assert (desk.asked, desk.said) == ([(0, "stopped")] * 2, [stop.asked()])
    assert points.suggest("b") == Searcher.FINISHED


def test_a_metric_that_no_trial_can_have_ends_the_sweep(points: Points, desk: Desk) -> None:
    points.suggest("a")
    reason = "objective.metric 'rankme' is not one of ['collapse', 'loss']; name one of them"
    points.on_trial_complete("a", result(Ending("failed", reason=reason, hopeless=True)))
    assert (points.hopeless, points.suggest("b")) == (reason, Searcher.FINISHED)
