"""Fine-tuning a classification without Ray: samples with classes, weights, scores, and what a checkpoint holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from data.shards.index import ShardSet
from methods.downstream.classification import Classification
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError
from orchestrator.feed import stream
from orchestrator.runs import finetune
from orchestrator.training.loop import train
from orchestrator.training.world import World
from tests.shardsets import write_pictures


def experiment_of(shards: str, *overrides: str) -> Experiment:
    tree: dict[str, Any] = {
        "name": "finetune",
        "home": "runs",
        "data": {"shards": shards},
        "encoder": {"name": "densenet", "spatial_dims": 2, "growth_rate": 4, "block_config": [1, 1, 1, 1],
                    "init_features": 8},
        "method": {"name": "scratch"},
        "downstream": {
            "shards": shards,
            "task": {"name": "classification", "size": 32, "hidden_dims": [], "class_weights": "balanced",
                     "score": "accuracy", "augment": {}},
            "optimiser": {"name": "adamw", "lr": 0.01},
            "budget": {"epochs": 10, "batch_size": 6},
            "evaluate_every_epochs": 2,
        },
    }  # fmt: skip
    return resolve(tree, overrides)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pictures(tmp_path_factory.mktemp("pictures"), num_patients=24, num_classes=3)


@pytest.mark.slow
def test_training_validates_classes_and_keeps_network_card_and_pictures(shards: str, tmp_path: Path) -> None:
    experiment = experiment_of(shards)
    labelled = finetune.check(experiment)
    plan = finetune.plan_of(experiment, labelled)
    feed_plan = finetune.feed_of(experiment, labelled, plan)
    entries: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}

    def report(metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        entries.extend(metrics["history"])
        files.update({path.name: path.read_bytes() for path in checkpoint.iterdir()} if checkpoint else {})

    trainee = finetune.build_trainee(experiment, None)
    train(trainee, plan, lambda step: stream.local_batches(feed_plan, rank=0), World(), report)
    validated = [entry for entry in entries if "score" in entry]
    assert [entry["step"] + 1 for entry in validated] == [6, 12, 18, 24, 30]
    assert all(entry["score"] == entry["accuracy"] for entry in validated)
    assert {"auc", "kappa", "f1", "recall/grade 0", "specificity/grade 2"} <= set(validated[-1])
    card = json.loads(files[finetune.NETWORK_CARD])
    assert (card["class_names"], card["kind"]) == (["grade 0", "grade 1", "grade 2"], "single")
    assert {"predictions.png", "confusions.png"} <= set(files)
    (tmp_path / "network").write_bytes(files[finetune.NETWORK])
    again = finetune.build_network(experiment, ShardSet.open(shards), None)
    again.network.load_state_dict(load_file(tmp_path / "network"), strict=True)


def test_balanced_weights_follow_the_labels_that_are_kept(shards: str) -> None:
    experiment = experiment_of(shards, "downstream.label_fraction=0.5", "downstream.task.class_weights=balanced")
    labelled = finetune.check(experiment)
    network = finetune.build_network(experiment, labelled.shards, None)
    assert isinstance(network, Classification)
    finetune.prepare(network, experiment, labelled)
    kept = np.array([labelled.shards.rows["classes"][row][0].as_py() for row in labelled.train.row_ids.tolist()])
    counts = np.bincount(kept, minlength=3)
    assert counts.sum() == 9
    assert network.weights.tolist() == pytest.approx((9 / 3 / counts).tolist())


def test_samples_without_map_or_class_are_refused_by_the_task_that_needs_them(shards: str) -> None:
    with pytest.raises(ValueError, match=r"0 samples with a label map in split 'train', expected at least 1"):
        finetune.check(experiment_of(shards, "downstream.task={name: segmentation, crop_size: [32, 32]}"))


def test_classes_that_do_not_fit_are_refused_before_training(tmp_path: Path) -> None:
    alike = write_pictures(tmp_path, num_patients=8, num_classes=1)
    with pytest.raises(ValueError, match=r"the shards name 1 classes, expected at least 2; ingest with classes"):
        finetune.check(experiment_of(alike))


def test_an_unknown_task_is_refused_with_those_that_there_are(shards: str) -> None:
    with pytest.raises(ConfigError, match=r"task.name: there is no 'tracking'; expected one of segmentation, "):
        experiment_of(shards, "downstream.task.name=tracking")
