"""Detection as it is typed: photographs with boxes are ingested, detected in by two workers, and scored."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from data.phantoms.photographs import OBJECTS, make_photograph, write_photographs
from data.shards.index import ShardSet
from data.views.batch import Batch
from methods.downstream.detection import Detection
from orchestrator.cli import main
from orchestrator.config.files import resolve
from orchestrator.feed import stream
from orchestrator.history import HISTORY, steps
from orchestrator.judging.cases import CASES
from orchestrator.judging.validation import evidence_of
from orchestrator.runs import finetune
from orchestrator.runs.run import RESULT
from orchestrator.training.loop import train
from orchestrator.training.resume import StageCheckpoints
from orchestrator.training.samples import batches_of
from orchestrator.training.world import World
from tests.experiments import UNET, tiny_experiment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_PHOTOGRAPHS, SIZE, STEPS = 20, 64, 4
# Then a last digit may choose another region, on one processor or another, and with it all that follows.
FIRST, LATER = 2, 0.02
# Of two workers, batch norm would see other statistics than of one.
ENCODER = {**UNET, "in_channels": 3, "norm": "instance"}
TASK = {
    "name": "detection",
    "size": 48,
    "pyramid_channels": 8,
    "head_dims": [16],
    "sampled_regions": 32,
    "score_threshold": 0.0,
    "most_detections": 20,
}


def tree_of(shards: Path, home: Path) -> dict[str, Any]:
    downstream = {
        "shards": str(shards),
        "task": TASK,
        "optimiser": {"name": "sgd", "lr": 0.01},
        "budget": {"steps": STEPS, "batch_size": 8},
        "evaluate_every_epochs": 1,
    }
    changes = {
        "method": {"name": "scratch"},
        "downstream": downstream,
        "training": {"report_every_steps": 1, "checkpoint_every_steps": 1},
        "tracking": {"pictures": True},
    }
    return tiny_experiment("boxes", str(shards), home, STEPS, encoder=ENCODER, **changes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Path) -> Path:
    """Photographs of 64 pixels, ingested at 48."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder / "source", NUM_PHOTOGRAPHS, size=SIZE)
    kind = ["--layout", "coco", "--modality", "NATURAL", "--recipe", "natural", "--set", "short_side=48"]
    assert main(["ingest", "--source", str(folder / "source"), *kind, "--out", str(folder / "shards")]) == 0
    return folder / "shards"


def alone(shards: Path, home: Path) -> list[dict[str, Any]]:
    """Train as one worker in this process; return what is logged of each step."""
    experiment = resolve(tree_of(shards, home))
    labelled = finetune.check(experiment)
    plan = finetune.plan_of(experiment, labelled)
    feed = finetune.feed_of(experiment, labelled, plan)
    entries: list[dict[str, Any]] = []

    def batches(first_step: int) -> Iterator[Batch]:
        return stream.local_batches(feed, 0)

    def report(metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        entries.extend(metrics["history"])

    train(finetune.build_trainee(experiment, None), plan, batches, World(), report)
    return entries


def test_photographs_keep_their_boxes_and_classes_on_the_way_into_shards(shards):
    opened = ShardSet.open(str(shards))
    assert opened.box_names == dict(enumerate(OBJECTS))
    drawn = [make_photograph(0, patient, SIZE).boxes for patient in range(NUM_PHOTOGRAPHS)]
    counts = np.bincount(np.concatenate([own.classes for own in drawn]), minlength=len(OBJECTS))
    stored = [kind for kinds in opened.rows["box_classes"].to_pylist() for kind in kinds]
    assert np.bincount(stored, minlength=len(OBJECTS)).tolist() == counts.tolist()


def test_two_workers_score_as_one_does_and_one_goes_on_from_what_two_left(shards, tmp_path, capsys):
    expected = alone(shards, tmp_path / "unused")
    file = tmp_path / "boxes.yaml"
    file.write_text(yaml.safe_dump(tree_of(shards, tmp_path / "runs")))
    assert main(["finetune", str(file), "resources.workers=2"]) == 0
    (run,) = (tmp_path / "runs" / "boxes").glob("finetune-*")
    check_losses(steps(run, finetune.STAGE), expected)
    scores = json.loads((run / RESULT).read_text())["scores"]
    best = next(entry for entry in expected if entry["step"] + 1 == scores["best_step"])
    judged = {name: best[name] for name in best["judged"]}
    assert scores == pytest.approx({**judged, **mean_box(shards), "best_step": best["step"] + 1}, abs=LATER)
    assert scores["score"] == scores["ap50"]
    check_files(run, shards, scores)
    printed = dict(re.findall(r"^(.+?) +(\d+\.\d{4})$", capsys.readouterr().out, re.MULTILINE))
    assert {name: float(printed[name]) for name in scores} == pytest.approx(scores, abs=1e-4)

    stage = run / "checkpoints" / finetune.STAGE
    newest = StageCheckpoints(str(stage)).find().newest
    assert newest is not None
    shutil.rmtree(stage / newest.name)
    (run / RESULT).unlink()
    before = (run / HISTORY).read_bytes()
    assert main(["finetune", str(file), "resources.workers=1"]) == 0
    again = [json.loads(line) for line in (run / HISTORY).read_bytes().removeprefix(before).splitlines()]
    trained = [entry for entry in again if "loss" in entry]
    assert 0 < len(trained) < STEPS, "it went on"
    check_losses(trained, expected[-len(trained) :])
    assert json.loads((run / RESULT).read_text())["scores"] == pytest.approx(scores)


def mean_box(shards: Path) -> dict[str, float]:
    """Return what the mean box scores, judged as the network is."""
    opened = ShardSet.open(str(shards))
    task = finetune.build_network(resolve(tree_of(shards, Path("unused"))), opened, None)
    assert isinstance(task, Detection)
    train, val = (opened.select(split).row_ids for split in ("train", "val"))
    task.network = task.mean_box(batches_of(opened, train, World(), task.needs))
    metrics = task.scores(evidence_of(task, opened, val, World())).metrics
    return {f"mean_box/{name}": metrics[name] for name in ("ap", "ap50", "mfroc")}


def check_losses(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Assert that steps saw the same samples and computed the same losses, parts of the losses and scores."""
    assert [entry["samples"] for entry in found] == [entry["samples"] for entry in expected]
    for one, other in zip(found, expected, strict=True):
        within = 1e-5 if one["step"] < FIRST else LATER
        names = [name for name in other if name.endswith("loss")]
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, abs=within)
        judged = other.get("judged", [])
        assert {name: one[name] for name in judged} == pytest.approx(
            {name: other[name] for name in judged}, abs=LATER
        )


def check_files(run: Path, shards: Path, scores: dict[str, float]) -> None:
    """Assert that there is a row for each photograph, and a picture of some."""
    cases = pd.read_parquet(run / CASES)
    expected = ["split", "case", "patient", "true_boxes", "detections", "found", "sensitivity", "ap50", "boxes"]
    assert [*cases.columns] == expected
    opened = ShardSet.open(str(shards))
    held_back = opened.rows["sample_id"].take(opened.select("val").row_ids).to_pylist()
    assert sorted(cases["case"]) == sorted(held_back)
    assert cases["detections"].max() <= TASK["most_detections"]
    assert (cases["found"] <= cases["true_boxes"]).all()
    for name in ("predictions.png", "views-finetune.png"):
        with Image.open(run / "pictures" / name) as picture:
            assert min(picture.size) > 200
