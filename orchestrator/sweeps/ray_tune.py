"""Tuning: drive Ray Tune. Tune starts trials and carries their reports; only the ledger remembers them.

Tune never stops a trial, because it would kill the trial's process and strand its Train workers. Instead a trial is
asked to end, and ends normally. So Tune's own snapshots are not needed, and are thrown away.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator import stop
from orchestrator.sweeps.pruning import prune
from orchestrator.sweeps.space import Point
from orchestrator.sweeps.standings import State
from orchestrator.sweeps.study import Ending, Ledger

SLIVER = 0.001
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The first Ctrl-C asks trials to end (``orchestrator.stop``); Tune's own handler would kill them.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


@dataclass(frozen=True)
class Hooks:
    """The sweep's functions for its trials.

    work        train a point; called in the trial's process
    refusal     say why a point cannot work, or None
    ask_to_end  have a trial end as pruned or stopped
    ended       takes how a trial ended, and whether its own process has told MLflow
    say         tell a person
    """

    work: Callable[[int, Point], Ending]
    refusal: Callable[[Point], str | None]
    ask_to_end: Callable[[int, State], None]
    ended: Callable[[int, Ending, bool], None]
    say: Callable[[str], None]


class Points(Searcher):
    """Takes points from the ledger and records how their trials end."""

    def __init__(self, ledger: Ledger, hooks: Hooks) -> None:
        super().__init__()
        self.ledger = ledger
        self.hooks = hooks
        self.running: dict[str, int] = {}
        self.hopeless = ""
        self.cause = ""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Hand out the next workable point, or say that there is none."""
        while not (stop.requested() or self.hopeless):
            if (taken := self.ledger.take()) is None:
                break
            number, point = taken
            if (reason := self.hooks.refusal(point)) is None:
                self.running[trial_id] = number
                return {"number": number, "point": json.dumps(point)}
            self._end(number, Ending("failed", reason=reason, impossible=True), told=False)
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record how a trial ended; Tune reports it once."""
        number = self.running.pop(trial_id)
        if error or not result or "state" not in result:
            reason = f"its process failed: {self.cause or 'it died'}"
            self._end(number, Ending("failed", reason=reason), told=False)
            return
        ending = Ending(**{field.name: result[field.name] for field in fields(Ending)})
        if ending.hopeless:
            self.hopeless = ending.reason
        self._end(number, ending, told=True)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Keep nothing: the ledger is on disk already."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Keep nothing: the ledger is on disk already."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _end(self, number: int, ending: Ending, told: bool) -> None:
        self.ledger.end(number, ending)
        self.hooks.ended(number, ending, told)


class Pruner(FIFOScheduler):
    """Records the reports of trials, and asks trials that fall behind to end; Tune is always told to continue."""

    def __init__(self, points: Points) -> None:
        super().__init__()
        self.points = points

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Decide on one report."""
        if "step" in result:
            ledger, number, step = self.points.ledger, trial.config["number"], result["step"]
            ledger.observe(number, step, result["value"])
            if prune(ledger.config.scheduler, ledger.curve(number, step), ledger.other_curves(number)):
                self.points.hooks.ask_to_end(number, "pruned")
        return self.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Remember the last line of the error that ended a trial's process; Tune asks the searcher next."""
        lines = Path(trial.error_file).read_text().split("\n") if trial.error_file else []
        self.points.cause = next((line.strip() for line in reversed(lines) if line.strip()), "")

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StopRelay(tune.Callback):
    """Asks all trials to end when the sweep itself is asked to end."""

    def __init__(self, points: Points) -> None:
        self.points = points
        self.said = False

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Check for a request once per turn of Tune's loop."""
        stop.raise_if_insisted()
        if stop.requested() and not self.said:
            self.said = True
            self.points.hooks.say(stop.asked())
        if stop.requested() or self.points.hopeless:
            for number in self.points.running.values():
                self.points.hooks.ask_to_end(number, "stopped")

    def __getstate__(self) -> dict[str, Any]:
        return {}


def run_trials(ledger: Ledger, hooks: Hooks, concurrent: int) -> None:
    """Run every trial that has not ended, ``concurrent`` at once; raise ValueError if none can be judged.

    Trials run in processes of this machine, where the sweep's folder and its runs are. They ask for a sliver of this
    machine instead of CPUs, because the CPUs are for their trainings.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    points, train = Points(ledger, hooks), hooks.work

    def work(settings: dict[str, Any]) -> dict[str, Any]:
        ending = train(settings["number"], json.loads(settings["point"]))
        return asdict(ending)

    here = f"node:{ray.util.get_node_ip_address()}"
    with TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(work, {"cpu": 0, here: SLIVER}),
            tune_config=tune.TuneConfig(
                search_alg=points,
                scheduler=Pruner(points),
                num_samples=ledger.total,
                max_concurrent_trials=concurrent,
                reuse_actors=True,  # importing everything takes a process longer than training takes many a trial
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(storage_path=folder, name="tune", verbose=0, callbacks=[StopRelay(points)]),
        ).fit()
    if points.hopeless:
        raise ValueError(points.hopeless)
