"""Gradient clipping: how far one step of the loop moves the weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.config.parts import Optimiser
from orchestrator.training.loop import Trainee, World, train
from orchestrator.training.optimiser import Schedule
from tests.orchestrator.training.test_loop import Denoise, Recorder, feed, plan

RATE = 0.5


def first_step(folder: Path, clip_norm: float | None) -> tuple[float, float]:
    """Take one step of plain gradient descent; return how far the weights moved, and the norm that was reported."""
    optimiser = Optimiser(name="sgd", lr=RATE, momentum=0, schedule="constant", clip_norm=clip_norm)
    method = Denoise()
    before = torch.nn.utils.parameters_to_vector(method.parameters()).detach().clone()
    recorder = Recorder(folder)
    one = replace(plan(), schedule=Schedule(optimiser, total_steps=1, warmup_steps=0))
    train(Trainee(method), one, feed, World(), recorder)
    moved = torch.nn.utils.parameters_to_vector(method.parameters()).detach() - before
    return float(moved.norm()), recorder.entries[0]["grad_norm"]


def test_a_gradient_above_clip_norm_is_shortened_to_it_and_reported_as_it_was(tmp_path: Path) -> None:
    moved, norm = first_step(tmp_path / "free", None)
    assert moved == pytest.approx(RATE * norm, rel=1e-5)
    clipped, reported = first_step(tmp_path / "clipped", norm / 4)
    assert reported == pytest.approx(norm, rel=1e-6)
    assert clipped == pytest.approx(RATE * norm / 4, rel=1e-5)


def test_a_gradient_below_clip_norm_is_left_as_it_is(tmp_path: Path) -> None:
    moved, norm = first_step(tmp_path / "free", None)
    assert first_step(tmp_path / "clipped", 4 * norm) == (moved, norm)
