"""SVD-Net as it is typed: photographs pretrain a 3D encoder by two workers, and it is fine-tuned on volumes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from data.phantoms.photographs import write_photographs
from orchestrator.cli import main
from orchestrator.config.files import resolve
from orchestrator.feed import stream
from orchestrator.history import steps
from orchestrator.runs import finetune, pretrain
from orchestrator.training.checkpoint import ENCODER
from orchestrator.training.loop import train
from orchestrator.training.world import World
from tests.experiments import tiny_experiment, tiny_segmentation
from tests.shardsets import write_volumes

pytestmark = pytest.mark.slow
STEPS = 3
# Of two workers, batch norm would see other statistics than of one.
NETWORK = {"name": "resnet3d", "init_features": 2, "norm": "group", "norm_groups": 2}
STRIDES = [1, 1, 1, 2, 1, 2]  # as released for nodules
METHODS: dict[str, dict[str, Any]] = {
    "svdnet": {"variant": "released", "size": 32},
    "svdnet_detection": {
        "size": 32,
        "scales": [24, 32],
        "pyramid_channels": 4,
        "norm_groups": 2,
        "head_dims": [8],
        "sampled_anchors": 16,
        "sampled_regions": 8,
    },
}
LABELS = {"svdnet": ["--layout", "csv"], "svdnet_detection": ["--layout", "coco", "--modality", "NATURAL"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Path) -> Path:
    """Volumes, and photographs once with their classes and once with the boxes of their objects."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder / "source", num_patients=16, size=48)
    write_volumes(folder / "volumes")
    for name, layout in LABELS.items():
        asked = ["--source", str(folder / "source"), *layout, "--recipe", "natural", "--set", "short_side=48"]
        assert main(["ingest", *asked, "--out", str(folder / name)]) == 0
    return folder


def file_of(name: str, folder: Path, workers: int) -> Path:
    task = {
        **tiny_segmentation(str(folder / "volumes"), steps=2),
        "encoder": {"depth_strides": STRIDES, "plane_strides": STRIDES},
    }
    task["task"] = {"name": "segmentation", "crop_size": [32, 32, 32], "decoder": "fcn"}
    changes = {
        "method": {"name": name, **METHODS[name]},
        "optimiser": {"name": "sgd", "lr": 1e-3},
        "budget": {"steps": STEPS, "batch_size": 4},
        "downstream": {**task, "budget": {"steps": 2, "batch_size": 2}},
        "resources": {"workers": workers, "readers": 0},
        "training": {"report_every_steps": 1},
        "tracking": {"pictures": True},
    }
    tree = tiny_experiment(name, str(folder / name), folder / f"runs-{workers}", STEPS, encoder=NETWORK, **changes)
    file = folder / f"{name}-{workers}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def alone(file: Path) -> list[dict[str, Any]]:
    """Train as one worker in this process; return what is logged of each step."""
    (course,) = pretrain.check(resolve(yaml.safe_load(file.read_text())))
    entries: list[dict[str, Any]] = []
    train(
        pretrain.build_trainee(course.experiment, 0, {}),
        course.plan,
        lambda first: stream.local_batches(course.feed, 0),
        World(),
        lambda metrics, folder=None: entries.extend(metrics["history"]),
    )
    return entries


@pytest.mark.parametrize("name", METHODS)
def test_two_workers_pretrain_on_photographs_as_one_does(name: str, folder: Path) -> None:
    expected = alone(file_of(name, folder, 1))
    assert main(["pretrain", str(file_of(name, folder, 2))]) == 0
    (pretrained,) = (folder / "runs-2" / name).glob("pretrain-*")
    found = steps(pretrained, "pretrain")
    assert [entry["samples"] for entry in found] == [entry["samples"] for entry in expected]
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in expected], abs=1e-4)
    assert (pretrained / "pictures" / "views-pretrain.png").exists()


def test_what_photographs_taught_is_fine_tuned_on_volumes_with_other_strides(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pretraining is done, if the test before has run, and is run here otherwise."""
    assert main(["finetune", str(file_of("svdnet", folder, 2))]) == 0
    (pretrained,), (tuned,) = ((folder / "runs-2" / "svdnet").glob(f"{kind}-*") for kind in ("pretrain", "finetune"))
    learnt = load_file(pretrained / "encoder" / ENCODER)
    said = " ".join(capsys.readouterr().err.split())
    assert "depth_strides=(1, 1, 1, 2, 1, 2) (pretrained with kept)" in said
    assert f"of the pretrained encoder, {len(learnt)} of {len(learnt)} tensors taken" in said
    assert len(steps(tuned, finetune.STAGE)) == 2
