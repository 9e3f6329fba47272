"""Three stages on two data sets, an encoder that holds another, and labels: killed, shared, and fine-tuned."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from orchestrator.cli import main
from orchestrator.config.files import resolve
from orchestrator.history import HISTORY, Tail, steps
from orchestrator.runs import finetune, network, pretrain
from orchestrator.runs.course import Course
from orchestrator.runs.run import RESULT
from orchestrator.training.checkpoint import ENCODER
from tests import clusters
from tests.experiments import tiny_segmentation
from tests.shardsets import write_slices, write_volumes
from tests.waiting import kill_tree, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STAGES, STEPS, KILL_AFTER_STEP = ("slices", "volumes", "organs"), 8, 4
OF_SLICES = {"name": "unet", "spatial_dims": 2, "features": [4, 4, 8, 8, 8, 4]}
OF_VOLUMES = {"name": "slices", "slices": OF_SLICES}
HEADS = {"projector_dim": 16, "predictor_dim": 8}


def tree_of(folder: Path, home: Path) -> dict[str, Any]:
    """A 2D encoder learns from slices and becomes a part of an encoder of volumes, which then learns organs.

    The slices and the organs are those of two shard sets each.
    """
    # Batch norm over few samples magnifies how sums round: with longer steps, two workers would drift from one.
    flow = {"optimiser": {"name": "sgd", "lr": 1e-6}, "budget": {"steps": STEPS, "batch_size": 4}}
    volumes = {"data": {"shards": str(folder / "volumes")}, "encoder": OF_VOLUMES}
    organs = {**volumes, "data": [volumes["data"], {"shards": str(folder / "more")}]}
    on_slices = {"name": "simsiam", "crops": {"size": [32, 32], "iou": [0.3, 0.6]}, **HEADS}
    on_volumes = {**on_slices, "crops": {"size": [16, 32, 32], "iou": [0.3, 0.6]}}
    return {
        "name": "three",
        "home": str(home),
        "data": [{"shards": str(folder / name), "weight": weight} for name, weight in (("slices", 3), ("films", 1))],
        "encoder": OF_SLICES,
        "stages": [
            {"name": "slices", "method": on_slices, **flow},
            {"name": "volumes", "method": on_volumes, "start": {"slices": "slices"}, **volumes, **flow},
            {"name": "organs", "method": {"name": "segmentation", "crop_size": [16, 32, 32]}, **organs, **flow},
        ],
        "resources": {"readers": 0},
        "health": {"times": 1},
        "training": {"report_every_steps": 1, "report_every_s": 0, "checkpoint_every_steps": 3},
        "tracking": {"pictures": False},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    write_slices(folder / "slices", num_patients=4, size=40)
    write_slices(folder / "films", num_patients=4, size=48, seed=1)
    write_volumes(folder / "volumes")
    write_volumes(folder / "more", num_patients=2, size=36)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_cluster: None) -> Path:
    """The folder of the run that nothing disturbed."""
    return pretrained(folder, folder / "undisturbed")


def pretrained(folder: Path, home: Path, *overrides: str) -> Path:
    (home.parent / f"{home.name}.yaml").write_text(yaml.safe_dump(tree_of(folder, home)))
    assert main(["pretrain", f"{home}.yaml", *overrides]) == 0
    (run,) = (home / "three").glob("pretrain-*")
    return run


def trace(run: Path) -> dict[str, list[tuple[int, str, float]]]:
    return {name: [(one["step"], one["samples"], one["loss"]) for one in steps(run, name)] for name in STAGES}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder" / ENCODER)


def test_each_stage_goes_on_from_the_one_that_it_names(folder: Path, undisturbed: Path) -> None:
    found = trace(undisturbed)
    assert [len(found[name]) for name in STAGES] == [STEPS] * 3
    asked = resolve(tree_of(folder, folder / "undisturbed"))
    ends = {name: str(max((undisturbed / "checkpoints" / name).glob("step_*"))) for name in ("slices", "volumes")}
    volumes, organs = (Course.open(asked, place).build(ends).encoder for place in (1, 2))
    learnt = load_file(Path(ends["slices"]) / ENCODER)
    assert all(torch.equal(value, learnt[key]) for key, value in volumes.slices.state_dict().items())
    learnt = load_file(Path(ends["volumes"]) / ENCODER)
    assert all(torch.equal(value, learnt[key]) for key, value in organs.state_dict().items())
    assert not all(torch.equal(value, learnt[key]) for key, value in weights(undisturbed).items())
    card = json.loads((undisturbed / "encoder" / "encoder.json").read_text())
    assert [stage["name"] for stage in card["stages"]] == [*STAGES]


@pytest.mark.soak
def test_a_run_that_is_killed_in_each_stage_resumes_exactly(folder: Path, undisturbed: Path) -> None:
    home, file = folder / "killed", folder / "killed.yaml"
    command = [sys.executable, "-m", "orchestrator.cli", "pretrain", str(file)]
    file.write_text(yaml.safe_dump(tree_of(folder, home)))

    def reached(stage: str) -> Path | None:
        lines = {path: Tail(path).read() for path in home.glob(f"**/{HISTORY}")}
        return next(
            (path for path, found in lines.items() for line in found
             if line.get("stage") == stage and line.get("step", -1) >= KILL_AFTER_STEP),
            None,
        )  # fmt: skip

    for stage in STAGES:
        job = subprocess.Popen(command, env=clusters.joined())
        history = wait_for(lambda stage=stage: reached(stage), job)
        kill_tree(job)
        assert len(list(steps(history.parent, stage))) < STEPS
    run = pretrained(folder, home)
    assert trace(run) == trace(undisturbed)
    expected = weights(undisturbed)
    assert all(torch.equal(value, expected[key]) for key, value in weights(run).items())


def test_two_workers_equal_one(folder: Path, undisturbed: Path) -> None:
    alone, shared = (
        trace(undisturbed),
        trace(pretrained(folder, folder / "two", "resources.workers=2")),
    )
    for stage in STAGES:
        assert [entry[:2] for entry in shared[stage]] == [entry[:2] for entry in alone[stage]]
        assert [entry[2] for entry in shared[stage]] == pytest.approx([entry[2] for entry in alone[stage]], abs=1e-4)


@pytest.mark.parametrize(("part", "shards"), [("", "volumes"), ("slices", "slices")])
def test_the_encoder_and_its_part_are_fine_tuned(folder: Path, undisturbed: Path, part: str, shards: str) -> None:
    tree, home = tree_of(folder, folder / "undisturbed"), folder / "undisturbed"
    size = [32, 32] if part else [16, 32, 32]
    task = {"name": "segmentation", "crop_size": size}
    tree["downstream"] = {**tiny_segmentation(str(folder / shards), steps=2), "task": task, "part": part}
    tree["downstream"]["budget"] = {"steps": 2, "batch_size": 2}
    file = folder / f"finetune-{part}.yaml"
    file.write_text(yaml.safe_dump(tree))
    asked = resolve(tree)
    built = network.build_network(asked, finetune.check(asked).shards, str(undisturbed / "encoder"))
    prefix, learnt = f"{part}." if part else "", weights(undisturbed)
    assert built.encoder.spatial_dims == (2 if part else 3)
    assert all(torch.equal(value, learnt[prefix + key]) for key, value in built.encoder.state_dict().items())
    before = {*(home / "three").glob("finetune-*")}
    assert main(["finetune", str(file)]) == 0
    (run,) = {*(home / "three").glob("finetune-*")} - before
    scores = json.loads((run / RESULT).read_text())["scores"]
    assert 0 <= scores["score"] <= 1
    assert pretrain.folder_of(asked) == undisturbed, "it was not pretrained again"
