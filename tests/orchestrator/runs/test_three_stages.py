"""Three stages on two data sets, an encoder that holds another, and labels: killed, shared, and fine-tuned."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
from torch import multiprocessing as mp

from data.views.batch import Batch
from orchestrator.cli import main
from orchestrator.config.files import resolve
from orchestrator.feed import stream
from orchestrator.history import HISTORY, Tail, steps
from orchestrator.runs import finetune, network, pretrain
from orchestrator.runs.course import Course
from orchestrator.runs.run import RESULT
from orchestrator.training.checkpoint import ENCODER
from orchestrator.training.loop import train
from orchestrator.training.world import World
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


def pretrained(folder: Path, home: Path) -> Path:
    (home.parent / f"{home.name}.yaml").write_text(yaml.safe_dump(tree_of(folder, home)))
    assert main(["pretrain", f"{home}.yaml"]) == 0
    (run,) = (home / "three").glob("pretrain-*")
    return run


def ends_of(run: Path) -> dict[str, str]:
    """Return the addresses of what the stages of a run have trained, by stage."""
    return {name: str(max((run / "checkpoints" / name).glob("step_*"))) for name in STAGES}


def traced(entries: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    return [(one["step"], one["samples"], one["loss"]) for one in entries]


def trace(run: Path) -> dict[str, list[tuple[int, str, float]]]:
    return {name: traced(steps(run, name)) for name in STAGES}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder" / ENCODER)


def test_each_stage_goes_on_from_the_one_that_it_names(folder: Path, undisturbed: Path) -> None:
    found = trace(undisturbed)
    assert [len(found[name]) for name in STAGES] == [STEPS] * 3
    asked = resolve(tree_of(folder, folder / "undisturbed"))
    ends = ends_of(undisturbed)
    volumes, organs = (Course.open(asked, place).build(ends).encoder for place in (1, 2))
    learnt = load_file(Path(ends["slices"]) / ENCODER)
    assert all(torch.equal(value, learnt[key]) for key, value in volumes.slices.state_dict().items())
    learnt = load_file(Path(ends["volumes"]) / ENCODER)
    assert all(torch.equal(value, learnt[key]) for key, value in organs.state_dict().items())
    assert not all(torch.equal(value, learnt[key]) for key, value in weights(undisturbed).items())
    card = json.loads((undisturbed / "encoder" / "encoder.json").read_text())
    assert [stage["name"] for stage in card["stages"]] == [*STAGES]


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


def train_on_rank(rank: int, folder: Path, ends: dict[str, str]) -> None:
    """Train each stage on one of two ranks, after the stages that have the given ends; rank 0 writes its steps."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    asked = resolve(tree_of(folder, folder / "two"), ["resources.workers=2"])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in STAGES}
    for place, name in enumerate(STAGES):
        course = Course.open(asked, place)

        def batches(first_step: int, course: Course = course) -> Iterator[Batch]:
            return stream.local_batches(course.feed, rank)

        def report(metrics: dict[str, Any], checkpoint: Path | None = None, name: str = name) -> None:
            found[name].extend(metrics["history"])

        trainee = pretrain.build_trainee(asked, place, ends)
        train(trainee, course.plan, batches, World(rank, 2, torch.device("cpu")), report)
    if rank == 0:
        (folder / "two.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_ranks_equal_one_in_each_stage(folder: Path, undisturbed: Path) -> None:
    """Without Ray, whose two workers ``test_two_workers`` holds."""
    mp.spawn(train_on_rank, args=(folder, ends_of(undisturbed)), nprocs=2)
    alone, shared = trace(undisturbed), json.loads((folder / "two.json").read_text())
    for stage in STAGES:
        found = traced(shared[stage])
        assert [entry[:2] for entry in found] == [entry[:2] for entry in alone[stage]]
        assert [entry[2] for entry in found] == pytest.approx([entry[2] for entry in alone[stage]], abs=1e-4)


def finetuned(folder: Path, part: str, shards: str) -> dict[str, Any]:
    """Return the experiment of the undisturbed run with a fine-tuning of its encoder, or of a part of it."""
    task = {"name": "segmentation", "crop_size": [32, 32] if part else [16, 32, 32]}
    tuned = {**tiny_segmentation(str(folder / shards)), "budget": {"steps": 2, "batch_size": 2}}
    return {**tree_of(folder, folder / "undisturbed"), "downstream": {**tuned, "task": task, "part": part}}


@pytest.mark.parametrize(("part", "shards"), [("", "volumes"), ("slices", "slices")])
def test_a_fine_tuning_of_the_encoder_or_its_part_begins_with_what_it_learnt(
    folder: Path, undisturbed: Path, part: str, shards: str
) -> None:
    asked = resolve(finetuned(folder, part, shards))
    built = network.build_network(asked, finetune.check(asked).shards, str(undisturbed / "encoder"))
    prefix, learnt = f"{part}." if part else "", weights(undisturbed)
    assert built.encoder.spatial_dims == (2 if part else 3)
    assert all(torch.equal(value, learnt[prefix + key]) for key, value in built.encoder.state_dict().items())
    assert pretrain.folder_of(asked) == undisturbed, "it is not pretrained again"


def test_a_part_of_the_encoder_is_fine_tuned(folder: Path, undisturbed: Path) -> None:
    """The whole is trained on labels by the last stage."""
    file = folder / "finetune.yaml"
    file.write_text(yaml.safe_dump(finetuned(folder, "slices", "slices")))
    assert main(["finetune", str(file)]) == 0
    (run,) = (folder / "undisturbed" / "three").glob("finetune-*")
    scores = json.loads((run / RESULT).read_text())["scores"]
    assert 0 <= scores["score"] <= 1
    assert [*(folder / "undisturbed" / "three").glob("pretrain-*")] == [undisturbed], "it was not pretrained again"
