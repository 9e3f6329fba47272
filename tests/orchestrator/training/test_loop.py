"""The training loop in one process, without Ray: resume, failure before the optimiser moves, evaluation."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import FrozenConfig, Losses, Method, Progress, Views
from orchestrator.config.optimiser import Optimiser
from orchestrator.training.checkpoint import CheckpointError, State, Stream
from orchestrator.training.finite import NonFiniteError
from orchestrator.training.loop import Plan, Trainee, train
from orchestrator.training.optimiser import Schedule
from orchestrator.training.resume import read
from orchestrator.training.world import World

TOTAL = 8


class Denoise(Method):
    """Predict a sample from its noisy self, with dropout: touches views' and the network's random numbers."""

    Config = FrozenConfig

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4))
        self.register_buffer("seen", torch.zeros(()))

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        clean = batch.voxels.float().flatten(1)
        noise = rng.fold("noise").normal_voxels([4], clean.device)
        return Views((clean + noise,), targets={"clean": clean})

    def loss(self, views: Views) -> Losses:
        error = (self.encoder(views.images[0]) - views.targets["clean"]).square().mean()
        return Losses(error, {"twice": 2 * error.detach()})

    def after_step(self, progress: Progress) -> None:
        self.seen += progress.share


def batch(step: int, value: float | None = None) -> Batch:
    voxels = torch.full((3, 1, 2, 2), value) if value is not None else torch.arange(12.0).reshape(3, 1, 2, 2) / 12
    return Batch(
        voxels=voxels,
        extents=np.full((3, 2), 2),
        scale=torch.ones(3),
        offset=torch.zeros(3),
        spacing_mm=np.ones((3, 2), np.float32),
        sample_ids=("a", "b", "c"),
        volumes=("a", "b", "c"),
        numbers=np.arange(3) + 3 * step,
        rows=np.arange(3) + 3 * step,
        epochs=np.full(3, step),
    )


def feed(first_step: int) -> Iterator[Batch]:
    return (batch(step) for step in range(first_step, TOTAL))


def plan(checkpoint_every_steps: int = 3, seed: int = 5, optimiser: Optimiser | None = None) -> Plan:
    return Plan(
        Schedule(optimiser or Optimiser(name="sgd", lr=0.05), total_steps=TOTAL, warmup_steps=2),
        Stream(digest="d", seed=seed, batch_size=3),
        num_samples=3,
        report_every_steps=2,
        report_every_s=0,
        checkpoint_every_steps=checkpoint_every_steps,
    )


class Recorder:
    """Keeps what is reported, and copies of the checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, Any]] = []
        self.checkpoints: dict[int, Path] = {}

    def __call__(self, metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        self.entries += metrics["history"]
        if checkpoint is not None:
            step = metrics["history"][-1]["step"] + 1
            self.checkpoints[step] = Path(shutil.copytree(checkpoint, self.folder / str(step)))


def numbers(entries: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    return [tuple(entry[name] for name in ("step", "loss", "twice", "lr", "grad_norm")) for entry in entries]


def test_a_resumed_run_repeats_the_losses_of_an_undisturbed_one_bit_for_bit(tmp_path: Path) -> None:
    whole = Recorder(tmp_path / "whole")
    undisturbed = Denoise()
    train(Trainee(undisturbed), plan(), feed, World(), whole)
    rest = Recorder(tmp_path / "rest")
    resumed = Denoise()
    train(Trainee(resumed), plan(), feed, World(), rest, whole.checkpoints[3])
    assert numbers(rest.entries) == numbers(whole.entries)[3:]
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "lars", "weight_decay": 0.1},
        {"name": "larc", "weight_decay": 0.1},
        {"name": "larc", "trust_clip": False, "trust_undecayed": True},
        {"name": "adam", "amsgrad": True},
        {"name": "adamw", "amsgrad": True, "schedule": "poly"},
        {"name": "sgd", "weight_decay": 0.04, "final_weight_decay": 0.4},
    ],
    ids=str,
)
def test_a_run_that_was_killed_resumes_exactly_with_every_optimiser(fields: dict[str, Any], tmp_path: Path) -> None:
    exactly = plan(optimiser=Optimiser(lr=0.05, **fields))
    whole, rest = Recorder(tmp_path / "whole"), Recorder(tmp_path / "rest")
    undisturbed, resumed = Denoise(), Denoise()
    train(Trainee(undisturbed), exactly, feed, World(), whole)

    def killed(first_step: int) -> Iterator[Batch]:
        yield from (batch(step) for step in range(first_step, 5))
        raise KeyboardInterrupt

    first = Recorder(tmp_path / "first")
    with pytest.raises(KeyboardInterrupt):
        train(Trainee(Denoise()), exactly, killed, World(), first)
    train(Trainee(resumed), exactly, feed, World(), rest, first.checkpoints[3])
    assert numbers(rest.entries) == numbers(whole.entries)[3:]
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_run_asked_to_stop_leaves_a_checkpoint_that_the_rest_goes_on_from(tmp_path: Path) -> None:
    whole, first, rest = (Recorder(tmp_path / name) for name in ("whole", "first", "rest"))
    train(Trainee(Denoise()), plan(), feed, World(), whole)
    answers = iter([False, False, True])  # before the first step, at the reports of steps 2 and 4
    state = train(Trainee(Denoise()), plan(100), feed, World(), first, asked_to_stop=lambda: next(answers))
    assert state == State(step=4)
    train(Trainee(Denoise()), plan(), feed, World(), rest, first.checkpoints[4])
    assert numbers(first.entries + rest.entries) == numbers(whole.entries)


def test_a_run_asked_to_stop_before_it_began_takes_no_step(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    state = train(Trainee(Denoise()), plan(), feed, World(), recorder, asked_to_stop=lambda: True)
    assert (state, recorder.entries) == (State(), [])


def test_every_step_is_reported_once_and_the_last_one_leaves_a_checkpoint(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    state = train(Trainee(Denoise()), plan(), feed, World(), recorder)
    assert [entry["step"] for entry in recorder.entries] == list(range(TOTAL))
    assert sorted(recorder.checkpoints) == [3, 6, 8]
    assert state == State(step=TOTAL)


def test_a_checkpoint_holds_every_step_since_the_one_before_it_reported_or_not(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    train(Trainee(Denoise()), plan(), feed, World(), recorder)
    held = {step: read(str(folder)).history for step, folder in recorder.checkpoints.items()}
    assert {step: [entry["step"] for entry in steps] for step, steps in held.items()} == {
        3: [0, 1, 2],
        6: [3, 4, 5],
        8: [6, 7],
    }


def test_a_non_finite_loss_stops_before_the_optimiser_moves_and_names_the_samples(tmp_path: Path) -> None:
    method = Denoise()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    poisoned = iter([batch(0, float("nan"))])
    with pytest.raises(NonFiniteError, match=r"step 0: loss is nan.*samples a, b, c\. Lower optimiser\.lr"):
        train(Trainee(method), plan(), lambda step: poisoned, World(), Recorder(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_checkpoint_of_another_sample_stream_is_refused(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    train(Trainee(Denoise()), plan(), feed, World(), recorder)
    with pytest.raises(CheckpointError, match=r"saved for seed=5, this run has seed=6; give the run another name"):
        train(Trainee(Denoise()), plan(seed=6), feed, World(), recorder, recorder.checkpoints[3])


def test_reports_keep_their_distance_in_time_and_leave_no_step_out(tmp_path: Path) -> None:
    counted: list[int] = []

    def count(metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        counted.append(len(metrics["history"]))

    rare = replace(plan(checkpoint_every_steps=6), report_every_steps=1, report_every_s=1000)
    train(Trainee(Denoise()), rare, feed, World(), count)
    assert counted == [1, 5, 2], "at once, with the checkpoint after step 6, and with the one at the end"
    counted.clear()
    train(Trainee(Denoise()), replace(rare, report_every_s=0), feed, World(), count)
    assert counted == [1] * TOTAL


@pytest.mark.slow
def test_a_step_s_speed_counts_what_was_reported_saved_and_judged_since_the_last(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)

    def slow(metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        time.sleep(0.2 if checkpoint is None else 0.4)
        recorder(metrics, checkpoint)

    watch = SlowWatch()
    slowly = replace(plan(checkpoint_every_steps=6), report_every_steps=2, report_every_s=0)
    train(Trainee(Denoise(), watches=(watch,)), slowly, feed, World(), slow)
    took = [3 / entry["samples_per_s"] for entry in recorder.entries]
    # Reports after steps 2, 4 and 6, the last with a checkpoint; a watch after step 5.
    for step, least in ((2, 0.2), (4, 0.2), (5, 0.3), (6, 0.4)):
        assert least <= took[step] < least + 0.15, took
    assert max(took[1], took[3], took[7]) < 0.15, took
    assert all(entry["data_wait_share"] < 0.5 for entry in recorder.entries if entry["step"] in (2, 4, 5, 6))


class SlowWatch:
    """Looks once, for 0.3 s."""

    def due(self, step: int) -> bool:
        return step == 5

    def run(self, method: Method, world: World) -> dict[str, float]:
        time.sleep(0.3)
        return {"health/looked": 1.0}


class EveryThird:
    """Scores that rise, then fall; stops two steps after the best."""

    scores = iter([0.1, 0.9, 0.2])

    def due(self, step: int) -> bool:
        return step % 2 == 0

    def run(self, method: Method, world: World) -> dict[str, float]:
        assert not method.training
        return {"score": next(self.scores)}

    def exhausted(self, state: State) -> bool:
        return state.step - state.best_step >= 2


def test_early_stopping_ends_the_run_and_remembers_the_best_step(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    state = train(Trainee(Denoise(), EveryThird()), plan(checkpoint_every_steps=100), feed, World(), recorder)
    assert state == State(step=6, best={"score": 0.9}, best_step=4)
    assert [entry["score"] for entry in recorder.entries if "score" in entry] == [0.1, 0.9, 0.2]
    assert sorted(recorder.checkpoints) == [2, 4, 6]


def test_a_training_in_segments_repeats_one_in_a_single_piece_and_changes_its_rate_where_it_is_told(
    tmp_path: Path,
) -> None:
    whole, first, second = (Recorder(tmp_path / name) for name in ("whole", "first", "second"))
    train(Trainee(Denoise()), plan(), feed, World(), whole)
    train(Trainee(Denoise()), replace(plan(), ends_at=4), feed, World(), first)
    assert [*first.checkpoints] == [3, 4]
    train(Trainee(Denoise()), plan(), feed, World(), second, first.checkpoints[4])
    assert numbers(first.entries + second.entries) == numbers(whole.entries), "the schedule is over the whole budget"
    changed = Recorder(tmp_path / "changed")
    faster = plan(optimiser=Optimiser(name="sgd", lr=0.5))
    train(Trainee(Denoise()), faster, feed, World(), changed, first.checkpoints[4])
    assert changed.entries[0]["loss"] == whole.entries[4]["loss"], "the copied weights"
    assert [entry["lr"] for entry in changed.entries] == pytest.approx([10 * one["lr"] for one in whole.entries[4:]])
