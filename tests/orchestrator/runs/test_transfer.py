"""A fine-tuning takes every weight of a pretrained network into another form of it, and says so beforehand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data.shards.index import ShardSet
from orchestrator.cli import main
from orchestrator.commands import console
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.runs import finetune
from orchestrator.runs.network import build_network, changes_of, transfer_of
from orchestrator.runs.pretrain import build_encoder
from orchestrator.training.checkpoint import CheckpointError, export_encoder
from tests.experiments import tiny_experiment, tiny_segmentation
from tests.shardsets import write_volumes

RESNET = {"name": "resnet3d", "spatial_dims": 3, "init_features": 2}
CROPS = {"size": [4, 32, 32], "iou": [0.3, 0.6]}


def experiment_of(shards: str, folder: Path, *overrides: str, **changes: Any) -> Experiment:
    tree = tiny_experiment(
        "tiny",
        shards,
        folder / "runs",
        2,
        encoder={**RESNET},
        method={"crops": CROPS},
        downstream={
            **tiny_segmentation(shards),
            "task": {"name": "segmentation", "crop_size": [32, 32, 64]},
            "encoder": {"depth_strides": "vanilla"},
        },
        **changes,
    )
    return resolve(tree, overrides)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_volumes(tmp_path_factory.mktemp("volumes"))


@pytest.mark.slow
def test_a_network_pretrained_with_its_depth_kept_is_fine_tuned_with_vanilla_strides(shards: str, tmp_path: Path):
    experiment = experiment_of(shards, tmp_path)
    assert experiment.pretrained_encoder.depth_strides == "kept"
    finetune.check(experiment)
    pretrained = build_encoder(experiment)
    export_encoder(tmp_path, pretrained, {})
    network = build_network(experiment, ShardSet.open(shards), str(tmp_path))
    assert network.encoder.strides == (32, 32, 32)
    learnt = pretrained.state_dict()
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, learnt[name]), name
    assert changes_of(experiment) == "depth_strides=vanilla (pretrained with kept)"
    assert str(transfer_of(experiment)) == f"{len(learnt)} of {len(learnt)} tensors taken"


def test_weights_of_other_channels_are_named_as_learnt_anew(shards: str, tmp_path: Path):
    experiment = experiment_of(shards, tmp_path, "encoder.in_channels=3", "downstream.encoder.in_channels=1")
    transfer = transfer_of(experiment)
    total = len(build_encoder(experiment).state_dict())
    assert str(transfer) == f"{total - 1} of {total} tensors taken; with initial values: conv1.weight"
    assert changes_of(experiment) == (
        "depth_strides=vanilla (pretrained with kept), in_channels=1 (pretrained with 3)"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("network=resnet3d_34", "network=resnet3d_34 (pretrained with resnet3d_18)"),
        ("init_features=4", "init_features=4 (pretrained with 2)"),
    ],
)
def test_changes_that_weights_depend_on_are_refused_before_anything_starts(
    shards: str, tmp_path: Path, change: str, said: str
):
    experiment = experiment_of(shards, tmp_path, f"downstream.encoder.{change}")
    with pytest.raises(ValueError, match=r"^downstream\.encoder: \d+ of \d+ keys do not match \(") as refused:
        finetune.check(experiment)
    assert not isinstance(refused.value, CheckpointError)
    assert f"{said}; change only fields that hold no weights" in str(refused.value)


def test_a_crop_is_checked_by_the_strides_of_the_task_s_own_form(shards: str, tmp_path: Path):
    crop = "downstream.task.crop_size=[8, 32, 64]"
    with pytest.raises(ValueError, match=r"crop_size \(8, 32, 64\): 8 is not a multiple of the encoder's stride 32"):
        finetune.check(experiment_of(shards, tmp_path, crop))
    finetune.check(experiment_of(shards, tmp_path, crop, "downstream.encoder.depth_strides=kept"))


def test_a_dry_run_of_a_pretraining_with_depth_kept_says_what_it_needs(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(console.out, "width", 200)
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment_of(shards, tmp_path).model_dump_json())
    assert main(["pretrain", str(path), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("simsiam" in line and "GiB" in line for line in lines)
    assert lines[-1].startswith("shards ")
    assert not (tmp_path / "runs").exists()
