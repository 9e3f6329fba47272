"""Scheduled numbers of a method: values along each shape, a teacher that follows one, and what is refused."""

import math

import pytest
import torch

from methods.base import Progress
from methods.parts.schedule import Ramp, value_at
from methods.voco import VoCo
from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError
from tests.batches import FACTS
from tests.encoders import Pixels

EXPERIMENT = {
    "name": "ramp",
    "data": {"shards": "shards"},
    "encoder": {"name": "unet", "spatial_dims": 2},
    "budget": {"epochs": 2, "batch_size": 8},
}


def test_a_plain_number_stays_as_it_is() -> None:
    assert [value_at(0.07, progress) for progress in (0.0, 0.3, 1.0)] == [0.07] * 3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.04, 0.0475, 0.055, 0.07, 0.07]),
        ("cosine", [0.04, 0.055 - 0.015 * math.cos(math.pi / 4), 0.055, 0.07, 0.07]),
        ("step", [0.04, 0.04, 0.04, 0.07, 0.07]),
    ],
)
def test_a_ramp_follows_its_shape_and_then_stays_at_its_end(shape: str, expected: list[float]) -> None:
    ramp = Ramp.model_validate({"start": 0.04, "end": 0.07, "over": 0.4, "shape": shape})
    assert [value_at(ramp, progress) for progress in (0.0, 0.1, 0.2, 0.4, 1.0)] == pytest.approx(expected, abs=1e-15)


def test_a_momentum_reaches_one_at_the_end_of_the_budget_as_in_dino() -> None:
    ramp = Ramp(start=0.996, end=1.0)
    expected = [1 - 0.002 * (1 + math.cos(math.pi * share / 4)) for share in range(5)]
    assert [value_at(ramp, share / 4) for share in range(5)] == pytest.approx(expected, abs=1e-15)
    assert value_at(ramp, 1.0) == 1.0


def experiment(**fields: object):
    return resolve({**EXPERIMENT, "method": {"name": "voco", "grid": [2, 2], **fields}})


def test_a_teacher_follows_the_student_by_the_momentum_of_the_progress() -> None:
    schedule = {"start": 0.5, "end": 1.0, "shape": "linear"}
    config = experiment(crop_size=16, projector_dim=8, teacher_decay=schedule, teacher_start="copy").method
    assert isinstance(config, VoCo.Config)
    method = VoCo(config, Pixels(2), FACTS)
    assert method.teacher is not None
    student, taught = next(method.head.parameters()), next(method.teacher.head.parameters())
    with torch.no_grad():
        student.fill_(1.0)
        taught.fill_(0.0)
    for step, moved in ((0, 0.5), (1, 0.75 * 0.5 + 0.25), (2, 0.75 * 0.5 + 0.25)):
        method.after_step(Progress(step, steps=2, epoch=0))
        torch.testing.assert_close(taught, torch.full_like(taught, moved))


def test_a_schedule_is_part_of_the_key_and_survives_being_written_out() -> None:
    plain, ramp = experiment(teacher_decay=0.9), experiment(teacher_decay={"start": 0.9, "end": 1})
    longer = experiment(teacher_decay={"start": 0.9, "end": 1, "over": 0.5})
    assert len({one.pretrain_key("digest") for one in (plain, ramp, longer)}) == 3
    for one in (plain, ramp):
        assert resolve(one.model_dump(mode="json")) == one


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (1.5, "method.teacher_decay: expected a number less than 1, found 1.5"),
        ("x", "method.teacher_decay: expected a valid number, found 'x'"),
        ({"start": 0.9}, "method.teacher_decay.end: missing"),
        ({"start": 0.9, "end": 1.1}, "method.teacher_decay: end 1.1 lies outside [0, 1]"),
        ({"start": -0.1, "end": 1}, "method.teacher_decay: start -0.1 lies outside [0, 1]"),
        ({"start": 0.9, "end": 1, "over": 0}, "method.teacher_decay.over: expected a number greater than 0, found 0"),
        ({"start": 0.9, "end": 1, "shap": "step"}, "method.teacher_decay.shap: no such field (did you mean shape?)"),
    ],
)
def test_a_senseless_schedule_is_refused(given: object, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        experiment(teacher_decay=given)
    assert str(refused.value).splitlines()[1].strip().startswith(said)
