"""A run's encoder and network among MLflow's models."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from methods.encoders.unet import UNetEncoder
from orchestrator.history import HistoryWriter
from orchestrator.runs.model import record_of
from orchestrator.tracking import models
from orchestrator.tracking.outbox import Cursor
from orchestrator.tracking.tracker import Tracker
from orchestrator.training.checkpoint import export_encoder
from tests.points import points_of_mlflow

FEATURES = (4, 4, 8, 8, 16, 4)
SET = ("flare22", "0123456789abcdef" * 4)
SCORES = {"score": 0.5, "dice_mean": 0.5, "dice/liver": 0.75}


def pretraining(store: str, home: Path) -> Tracker:
    """Write what a pretraining writes, and log it."""
    tracker = Tracker(home / "tiny" / "pretrain-1", store)
    tags = {"kind": "pretrain", "row": "SimSiam, IoU [0.3, 0.6]", "seed": "0"}
    tracker.start(home.name, "SimSiam: pretraining, seed 0", f"{home.name}-key", tags)
    tracker.params({"method.name": "simsiam", "method.variant": "paper"})
    tracker.dataset(*SET, "shards/flare22")
    encoder = UNetEncoder(UNetEncoder.Config(spatial_dims=2, in_channels=1, features=FEATURES))
    stage = {"name": "pretrain", "method": {"name": "simsiam", "variant": "paper"}, "budget": {"steps": 40}}
    card = {
        "encoder": encoder.config.model_dump(mode="json"),
        "stages": [stage],
        "seed": 0,
        "digest": SET[1],
        "recipe": {"name": "ct_abdomen_slices"},
    }
    (tracker.folder / "encoder").mkdir()
    export_encoder(tracker.folder / "encoder", encoder, card)
    steps = [{"step": step, "loss": 1.0 - step / 4} for step in range(3)]
    HistoryWriter(tracker.folder, "pretrain").after_report(None, [{"history": steps}], None)
    record = record_of(tracker.folder, SCORES)
    assert record is not None
    tracker.model(record)
    tracker.model(record)  # as a run does that is continued
    return tracker


@pytest.mark.slow
def test_an_encoder_is_a_model_with_signature_card_scores_and_data(store: str, tmp_path: Path) -> None:
    tracker = pretraining(store, tmp_path)
    assert tracker.flush(force=True) is None
    client, run_id = MlflowClient(store), tracker.run_id
    assert run_id is not None
    run = client.get_run(run_id)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.status, model.source_run_id) == (LoggedModelStatus.READY, run_id)
    assert model.name == "SimSiam, IoU [0\u00b73, 0\u00b76], seed 0, encoder"
    assert model.params["method"] == "simsiam"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert {(m.key, m.value, m.dataset_name, m.dataset_digest) for m in model.metrics} == {
        (name, 0.5, SET[0], SET[1][:36]) for name in ("best/score", "best/dice_mean", "loss")
    }
    assert points_of_mlflow(tracker.folder, store)["loss"] == [(0, 1.0), (1, 0.75), (2, 0.5)]
    files = {Path(file.path).name for file in client.list_logged_model_artifacts(model.model_id)}
    assert files == {"MLmodel", "card.md", "encoder.json", "encoder.safetensors", "load.py"}
    (described,) = Path(store.removeprefix("sqlite:///")).parent.rglob(f"{model.model_id}/artifacts/MLmodel")
    signature = yaml.safe_load(described.read_text())["signature"]
    (given,), found = json.loads(signature["inputs"]), json.loads(signature["outputs"])
    assert given["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, -1, -1]}
    assert [one["tensor-spec"]["shape"] for one in found] == [[-1, width, -1, -1] for width in FEATURES[:5]]
    card = model.tags["mlflow.note.content"]
    for said in ("- method: simsiam", "- variant: paper", "flare22, digest `0123456789abcdef`", "## Licence"):
        assert said in card
    assert "| dice_mean | 0.5000 | - |" in card


@pytest.mark.slow
def test_a_model_of_which_half_was_sent_is_completed_and_none_is_twice(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = pretraining(store, tmp_path)

    def failing(*_: object) -> None:
        raise ConnectionError("server is gone")

    with monkeypatch.context() as broken:
        broken.setattr(models, "_log_description", failing)
        assert "server is gone" in (tracker.flush(force=True) or "")
    sent = Cursor.read(tracker.folder)
    assert tracker.flush(force=True) is None
    sent.write(tracker.folder)  # killed after MLflow had taken the model, before that was noted
    assert tracker.flush(force=True) is None
    client = MlflowClient(store)
    assert tracker.run_id is not None
    experiment_id = client.get_run(tracker.run_id).info.experiment_id
    assert [one.status for one in client.search_logged_models([experiment_id])] == [LoggedModelStatus.READY]


@pytest.mark.slow
def test_a_network_names_the_encoder_that_it_began_with(store: str, tmp_path: Path) -> None:
    encoder_run = pretraining(store, tmp_path)
    assert encoder_run.flush(force=True) is None
    record = record_of(encoder_run.folder, {})
    assert record is not None
    network = Tracker(tmp_path / "tiny" / "finetune-1", store)
    network.start(tmp_path.name, "fine-tuning", "finetune-key", {"kind": "finetune"})
    network.model(replace(record, kind="network", key="finetune-key", start=f"{tmp_path.name}-key"))
    assert network.flush(force=True) is None
    client = MlflowClient(store)
    assert network.run_id is not None
    run = client.get_run(network.run_id)
    encoder = models.found_model(client, run.info.experiment_id, f"{tmp_path.name}-key")
    assert encoder is not None
    assert [given.model_id for given in run.inputs.model_inputs] == [encoder.model_id]
