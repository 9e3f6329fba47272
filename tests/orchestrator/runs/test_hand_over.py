"""Stages: each starts from the encoder that the stage before it left. Trainings are replaced, so Ray does not run."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.cluster import connection
from orchestrator.config.files import resolve
from orchestrator.runs import pretrain
from orchestrator.runs.run import Run
from orchestrator.training.checkpoint import ENCODER
from orchestrator.training.ray_train import Job
from tests.experiments import tiny_experiment
from tests.shardsets import write_slices

Weights = dict[str, torch.Tensor]
NAMES = ("first", "second", "third")


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Trainings:
    """Stands for Ray Train: a training adds 1 to every weight of its encoder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began: list[Weights] = []
        self.ended: list[Weights] = []

    def __call__(self, job: Job, *_: Any) -> SimpleNamespace:
        trainee = job.build()
        encoder = trainee.method.encoder
        self.began.append({name: value.clone() for name, value in encoder.state_dict().items()})
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += 1
        self.ended.append({name: value.clone() for name, value in encoder.state_dict().items()})
        checkpoint = self.folder / job.stage
        checkpoint.mkdir(parents=True)
        trainee.export(checkpoint, trainee.method)
        return SimpleNamespace(uri=str(checkpoint))


def test_each_stage_starts_from_the_encoder_of_the_stage_before_and_the_last_one_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tiny_experiment("stages", write_slices(tmp_path / "slices"), tmp_path / "runs", 4)
    stage = {name: tree.pop(name) for name in ("method", "optimiser", "budget")}
    experiment = resolve({**tree, "stages": [{**stage, "name": name} for name in NAMES]})
    trainings = Trainings(tmp_path / "checkpoints")
    monkeypatch.setattr(pretrain, "launch", trainings)
    monkeypatch.setattr(connection, "connected", nullcontext)
    monkeypatch.setattr(connection, "preflight", lambda resources: None)
    monkeypatch.setattr(Run, "opened", lambda *_: nullcontext())
    done = pretrain.pretrain(experiment)
    assert equal(trainings.began[0], dict(pretrain.build_encoder(experiment).state_dict()))
    assert equal(trainings.began[1], trainings.ended[0])
    assert equal(trainings.began[2], trainings.ended[1])
    assert equal(load_file(done.folder / "encoder" / ENCODER), trainings.ended[2])
    assert not equal(trainings.ended[2], trainings.ended[1])
