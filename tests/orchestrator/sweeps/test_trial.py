"""A trial in its process: what it reports of which training, and what it leaves out once it has been ended."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from orchestrator import stop
from orchestrator.config.experiment import Experiment
from orchestrator.history import HISTORY, append
from orchestrator.runs.finetune import FinetuningResult
from orchestrator.runs.pretrain import PretrainingResult, folder_of
from orchestrator.runs.work import TrainingWork
from orchestrator.sweeps import sweep as sweeps
from orchestrator.sweeps import trial as trials
from orchestrator.sweeps.trial import Trial
from orchestrator.tracking.tracker import Tracker
from tests.experiments import UNET
from tests.orchestrator.sweeps.test_several import BY_RANK, DICE, LR
from tests.orchestrator.sweeps.test_sweep import STEPS, write_sweep
from tests.shardsets import write_slices

MEASURED = [10, 20, 30, 40, 50, 60]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=8, size=40)


class Doings:
    """Stands for Ray: trainings that write a history at once, and a pool that ends the trial at a step."""

    def __init__(self, trial: Trial, ends_at: int | None) -> None:
        self.trial = trial
        self.ends_at = ends_at
        self.pretrained: list[int] = []
        self.finetuned: list[int] = []
        self.reported: list[tuple[int, float]] = []

    def pretrain(self, experiment: Experiment, *others: Any) -> PretrainingResult:
        self.pretrained.append(experiment.seed)
        folder = folder_of(experiment)
        folder.mkdir(parents=True)
        append(folder / HISTORY, [self.line(step) for step in range(STEPS)])
        return PretrainingResult(folder, folder.name, "encoder")

    def line(self, step: int) -> dict[str, Any]:
        rank = {"health/effective_rank": step / 10, "health/collapse": 0.5} if step + 1 in MEASURED else {}
        return {"stage": "pretrain", "step": step, "loss": 0.5, "samples_per_s": 16.0, **rank}

    def finetune(self, experiment: Experiment, *others: Any) -> FinetuningResult:
        self.finetuned.append(experiment.seed)
        return FinetuningResult(Path("finetune"), "key", {"dice_mean": 0.5 + 0.1 * experiment.seed})

    def report(self, metrics: dict[str, Any]) -> None:
        self.reported.append((metrics["step"], metrics["value"]))
        if metrics["step"] == self.ends_at:
            stop.mark(str(self.trial.folder), "pruned")


@pytest.fixture
def trial(tmp_path: Path, shards: str) -> Iterator[Trial]:
    path = write_sweep(tmp_path, shards, UNET, objective=DICE, scheduler=BY_RANK, seeds=[0, 1], space=LR)
    yield sweeps.load(path, ["health.times=6"]).trial(0, {"optimiser.lr": 0.1})
    stop.withdraw()


def ran(trial: Trial, ends_at: int | None, patch: pytest.MonkeyPatch) -> tuple[trials.Ending, Doings]:
    doings = Doings(trial, ends_at)
    patch.setattr(trials.pretrain, "pretrain", doings.pretrain)
    patch.setattr(trials.finetune, "finetune", doings.finetune)
    patch.setattr(trials.tune, "report", doings.report)
    patch.setattr(trials, "opened", lambda trial: Mock(spec=Tracker))
    return trials.run(trial), doings


@pytest.mark.slow
def test_a_pretraining_that_falls_behind_at_its_last_step_is_not_fine_tuned_or_repeated(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, doings = ran(trial, 60, monkeypatch)
    assert doings.reported == [(step, pytest.approx((step - 1) / 10)) for step in MEASURED], "the pretraining's rank"
    assert (ending.state, doings.pretrained, doings.finetuned) == ("pruned", [0], [])
    assert ending.work == (
        TrainingWork("pretrain", 60, 60, 60 * 8 / 16), TrainingWork("finetune", 0, 4, 0.0),
        TrainingWork("pretrain", 0, 60, 0.0), TrainingWork("finetune", 0, 4, 0.0),
    )  # fmt: skip
    assert ending.pretrained == folder_of(trial.experiment).name


@pytest.mark.slow
def test_a_trial_that_goes_on_is_trained_with_every_seed_and_judged_by_the_first_alone(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, doings = ran(trial, None, monkeypatch)
    assert [step for step, _ in doings.reported] == MEASURED
    assert (doings.pretrained, doings.finetuned) == ([0, 1], [0, 1])
    assert (ending.state, ending.repeats, ending.value) == ("done", (0.5, 0.6), pytest.approx(0.55))


@pytest.mark.slow
def test_a_metric_that_the_pretraining_lacks_is_named(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, doings = ran(replace(trial, judged_by="health/rank"), None, monkeypatch)
    assert (ending.state, ending.hopeless, doings.finetuned) == ("failed", True, [])
    assert ending.reason.startswith(
        "scheduler.metric 'health/rank' is not one of ['health/collapse', 'health/effective_r"
    )
