import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.history import HistoryWriter
from orchestrator.tracking.opening import client_of
from orchestrator.tracking.outbox import OUTBOX, Cursor, waiting
from orchestrator.tracking.store import default_uri
from orchestrator.tracking.tracker import Tracker, UntrackableError, flatten
from tests.points import assert_points_equal_history, points_of_mlflow

UNREACHABLE = "http://user:secret@127.0.0.1:9"  # the discard port: nothing listens there


def _runs(store: str, experiment: str) -> list[Run]:
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


@pytest.mark.slow
def test_a_run_carries_params_metrics_artifacts_and_status(store: str, tmp_path: Path) -> None:
    picture = tmp_path / "views.png"
    picture.write_bytes(b"png")
    tracker = Tracker(tmp_path / "run", store)
    tracker.start("carries", "pretrain simsiam", "k1", {"kind": "pretrain"})
    tracker.params(flatten({"method": {"name": "simsiam", "crops": {"iou": [0.3, 0.6]}}}))
    tracker.metrics([{"step": 0, "loss": -0.5}, {"step": 1, "loss": -0.75}])
    tracker.artifact(picture, "pictures")
    tracker.finish("FINISHED")
    assert tracker.flush(force=True) is None
    (run,) = _runs(store, "carries")
    assert run.info.run_name == "pretrain simsiam"
    assert run.data.params == {
        "method.name": "simsiam",
        "method.crops.iou": "[0.3, 0.6]",
        "method.crops.iou.low": "0.3",
        "method.crops.iou.high": "0.6",
    }
    assert run.data.metrics == {"loss": -0.75}
    assert run.info.status == "FINISHED"
    assert [file.path for file in MlflowClient(store).list_artifacts(run.info.run_id, "pictures")] == [
        "pictures/views.png"
    ]
    assert [m.value for m in MlflowClient(store).get_metric_history(run.info.run_id, "loss")] == [-0.5, -0.75]


def test_what_mlflow_is_to_draw_are_numbers_of_their_own() -> None:
    assert flatten({"stages": [{"name": "a", "grid": [1, 4, 4]}, {"name": "b"}], "labels": [1, 2, 8, 11]}) == {
        "stages.0.name": "a",
        "stages.0.grid": "[1, 4, 4]",
        "stages.0.grid.0": "1",
        "stages.0.grid.1": "4",
        "stages.0.grid.2": "4",
        "stages.1.name": "b",
        "labels": "[1, 2, 8, 11]",
    }
    assert flatten({"stages": [], "axes": ["H", "W"], "on": [True, False], "lr": None}) == {
        "stages": "[]",
        "axes": '["H", "W"]',
        "on": "[true, false]",
        "lr": "null",
    }


@pytest.mark.slow
def test_the_same_key_finds_its_run_again_and_a_child_names_its_parent(store: str, tmp_path: Path) -> None:
    for _ in range(2):
        parent = Tracker(tmp_path / "parent", store)
        parent.start("nested", "table", "parent-key")
        parent.flush(force=True)
    child = Tracker(tmp_path / "child", store)
    child.start("nested", "trial", "child-key", parent=tmp_path / "parent")
    child.flush(force=True)
    runs = {run.data.tags["run_key"]: run for run in _runs(store, "nested")}
    assert sorted(runs) == ["child-key", "parent-key"]
    assert runs["child-key"].data.tags["mlflow.parentRunId"] == runs["parent-key"].info.run_id


@pytest.mark.slow
def test_what_an_unreachable_server_missed_is_sent_later_in_order(store: str, tmp_path: Path) -> None:
    offline = Tracker(tmp_path / "run", UNREACHABLE)
    offline.start("later", "pretrain", "k3")
    offline.metrics([{"step": step, "loss": float(step)} for step in range(3)])
    failure = offline.flush(force=True)
    assert failure == (
        "MLflow at http://127.0.0.1:9 cannot take anything now: Failed to establish a new connection: [Errno 111] "
        "Connection refused; what could not be sent is kept in the runs' folders, and sent as soon as it can, or by "
        "`raydiology ui` later"
    )
    assert waiting(tmp_path) == [tmp_path / "run"]
    online = Tracker(tmp_path / "run", store)
    online.metrics([{"step": 3, "loss": 3.0}])
    assert online.flush(force=True) is None
    assert waiting(tmp_path) == []
    (run,) = _runs(store, "later")
    history = MlflowClient(store).get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def _train(folder: Path, first_step: int, last_step: int) -> None:
    """Report steps to a run's history as a training does, without anyone who sends them."""
    entries = [{"step": step, "samples": "0f", "loss": step / 3} for step in range(first_step, last_step)]
    HistoryWriter(folder, "pretrain").after_report(None, [{"history": entries}], None)


@pytest.mark.slow
def test_each_step_arrives_once_whatever_was_killed_before_it_was_sent(store: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = Tracker(folder, store)
    tracker.start("once", "pretrain", "k7")
    _train(folder, 0, 4)
    assert tracker.flush(force=True) is None
    _train(folder, 4, 6)  # killed here: these were written and never sent
    assert waiting(tmp_path) == [folder]
    again = Tracker(folder, store)
    again.start("once", "pretrain", "k7")
    _train(folder, 3, 9)  # from the checkpoint at step 3
    sent = Cursor.read(folder)
    assert again.flush(force=True) is None
    sent.write(folder)  # killed after MLflow had taken the steps, before that was noted
    assert again.flush(force=True) is None
    again.finish("FINISHED")
    assert again.flush(force=True) is None
    assert waiting(tmp_path) == []
    assert_points_equal_history(folder, store, steps=9)


@pytest.mark.slow
def test_a_run_that_goes_on_at_another_server_brings_all_that_it_has(store: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", f"sqlite:///{tmp_path}/other.db"
    tracker = Tracker(folder, store)
    tracker.start("moves", "pretrain", "k8")
    tracker.params({"seed": "0"})
    _train(folder, 0, 2)
    tracker.flush(force=True)
    moved = Tracker(folder, other)
    moved.start("moves", "pretrain", "k8")
    _train(folder, 2, 5)
    assert moved.flush(force=True) is None
    (run,) = _runs(other, "moves")
    assert run.data.params == {"seed": "0"}
    assert_points_equal_history(folder, other, steps=5)


def test_a_number_that_has_not_changed_is_not_logged_again(store: str, tmp_path: Path) -> None:
    for score in (0.5, 0.5, 0.75):
        tracker = Tracker(tmp_path / "run", store)
        tracker.start("summary", "table", "k9")
        tracker.summary({"mean/scratch": score, "mean/simsiam": 1.0})
        tracker.metrics([{"step": step, "dice": step / 4} for step in range(3)])
        assert tracker.flush(force=True) is None
    points = points_of_mlflow(tmp_path / "run", store)
    assert points == {
        "mean/scratch": [(0, 0.5), (0, 0.75)],
        "mean/simsiam": [(0, 1.0)],
        "dice": [(0, 0.0), (1, 0.25), (2, 0.5)],
    }
    (run,) = _runs(store, "summary")
    assert run.data.metrics["mean/scratch"] == 0.75


def test_what_mlflow_refuses_is_said_and_keeps_nothing_back(store: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", store)
    tracker.start("refused", "pretrain", "k6")
    tracker.params({"seed": "0"})
    tracker.params({"seed": "1"})
    tracker.summary({"score": 0.5})
    refusal = tracker.flush(force=True)
    assert refusal is not None
    assert refusal.startswith("MLflow refused params of run: ")
    assert "Changing param values is not allowed" in refusal
    assert waiting(tmp_path) == []
    (run,) = _runs(store, "refused")
    assert (run.data.params, run.data.metrics) == ({"seed": "0"}, {"score": 0.5})


def _untrackable(tmp_path: Path, uri: str, experiment: str = "hindered") -> str:
    """Try to start a run that MLflow can never take; return why, once it is certain that nothing is left of it."""
    with pytest.raises(UntrackableError) as refusal:
        Tracker(tmp_path / "home" / "tiny" / "run", uri).start(experiment, "pretrain", "k1")
    assert waiting(tmp_path) == []
    assert not list(tmp_path.rglob(OUTBOX))
    return str(refusal.value)


def test_what_can_never_be_tracked_is_refused_in_mlflows_words_before_anything_is_trained(
    store: str, tmp_path: Path
) -> None:
    assert "got unsupported URI 'htp://x'" in _untrackable(tmp_path, "htp://x")
    assert "The filesystem tracking backend (e.g., './mlruns') is in maintenance mode" in _untrackable(
        tmp_path, "runs"
    )
    (tmp_path / "mlflow.db").mkdir()
    assert ": unable to open database file; expected" in _untrackable(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "scan.db").write_text("no database " * 1000)
    assert ": file is not a database; expected" in _untrackable(tmp_path, f"sqlite:///{tmp_path}/scan.db")
    (tmp_path / "file").write_text("")
    assert "File exists" in _untrackable(tmp_path, f"sqlite:///{tmp_path}/file/mlflow.db")


@pytest.mark.slow
def test_an_old_schema_and_a_deleted_experiment_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    file = tmp_path / "own" / "mlflow.db"
    uri = f"sqlite:///{file}"
    client = client_of(uri)
    client.delete_experiment(client.create_experiment("gone"))
    assert "must be in the 'active' state" in _untrackable(tmp_path, uri, "gone")
    old = shutil.copy(file, tmp_path / "old.db")
    with closing(sqlite3.connect(old)) as database:
        database.execute("UPDATE alembic_version SET version_num = '0'")
        database.commit()
    refusal = _untrackable(tmp_path, f"sqlite:///{old}")
    assert "Detected out-of-date database schema (found version 0, but expected" in refusal
    assert "mlflow db upgrade" in refusal


def test_what_a_deleted_run_lacks_is_kept_until_it_is_restored(store: str, tmp_path: Path) -> None:
    folder, client = tmp_path / "run", MlflowClient(store)
    tracker = Tracker(folder, store)
    tracker.start("restored", "pretrain", "k10")
    assert tracker.run_id is not None
    client.delete_run(tracker.run_id)
    _train(folder, 0, 3)
    hindrance = tracker.flush(force=True)
    assert hindrance is not None
    assert "must be in the 'active' state" in hindrance
    assert hindrance.endswith("is kept in the run's folder: fix that, and `raydiology ui` sends it")
    client.restore_run(tracker.run_id)
    assert tracker.flush(force=True) is None
    assert_points_equal_history(folder, store, steps=3)


def test_a_run_that_was_deleted_in_mlflow_is_made_anew_with_all_that_it_has_when_it_goes_on(
    store: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    tracker = Tracker(folder, store)
    tracker.start("anew", "pretrain", "k13")
    _train(folder, 0, 3)
    assert tracker.flush(force=True) is None
    assert tracker.run_id is not None
    MlflowClient(store).delete_run(tracker.run_id)
    tracker.finish("KILLED")
    again = Tracker(folder, store)
    again.start("anew", "pretrain", "k13")
    _train(folder, 3, 5)
    assert again.flush(force=True) is None
    assert_points_equal_history(folder, store, steps=5)
    assert [run.info.run_id for run in _runs(store, "anew")] == [again.run_id]


def test_classes_and_regions_may_be_called_anything(store: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", store)
    tracker.start("names", "finetune", "k11")
    tracker.params({"downstream.task.regions.tumour (whole)": "[1, 2]"})
    tracker.metrics([{"step": 0, "dice/Niere, links": 0.5, "dice/..": 0.25, "loss": 1.0}])
    assert tracker.flush(force=True) is None
    (run,) = _runs(store, "names")
    assert run.data.params == {"downstream.task.regions.tumour _whole_": "[1, 2]"}
    assert run.data.metrics == {"dice/Niere_ links": 0.5, "dice/__": 0.25, "loss": 1.0}


def test_an_artifact_that_is_gone_is_said_and_keeps_nothing_back(store: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", store)
    tracker.start("gone", "finetune", "k12")
    tracker.artifact(tmp_path / "run" / "deleted.png")
    tracker.summary({"score": 0.5})
    refusal = tracker.flush(force=True)
    assert refusal is not None
    assert refusal.startswith("MLflow refused artifact of run: [Errno 2] No such file or directory")
    assert waiting(tmp_path) == []
    assert _runs(store, "gone")[0].data.metrics == {"score": 0.5}


def test_nothing_more_is_kept_of_a_run_whose_folder_was_deleted(store: str, tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "home" / "project" / "run"
    tracker = Tracker(folder, store)
    tracker.start("deleted", "pretrain", "k1")
    shutil.rmtree(folder)
    with pytest.raises(KeyError), Tracker(folder, store).closing():
        raise KeyError
    assert tracker.flush(force=True) is None
    assert not (folder / OUTBOX).exists()
    assert waiting(home) == []
    (folder / OUTBOX).write_text('{"op": "finish", "status": "KILLED"}\n')
    assert waiting(home) == [], "as versions left it that kept such a finish"
    tracker.start("deleted", "pretrain", "k1")
    assert (folder / OUTBOX).exists()


def test_a_failed_flush_is_not_repeated_at_once(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", UNREACHABLE)
    tracker.start("quiet", "pretrain", "k4")
    first = tracker.flush(force=True)
    lines = (tmp_path / "run" / OUTBOX).read_text().splitlines()
    assert tracker.flush() == first
    assert [json.loads(line)["op"] for line in lines] == ["start"]


@pytest.mark.slow
def test_more_metrics_than_one_request_takes_all_arrive(store: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", store)
    tracker.start("many", "pretrain", "k5")
    tracker.metrics([{"step": step, "a": 0.0, "b": 1.0} for step in range(1000)])
    tracker.flush(force=True)
    (run,) = _runs(store, "many")
    assert len(MlflowClient(store).get_metric_history(run.info.run_id, "b")) == 1000


def test_the_embedded_store_lies_at_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert default_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_an_experiment_opens_as_model_training_and_keeps_its_artifacts_beside_the_store(store: str, tmp_path: Path):
    tracker = Tracker(tmp_path / "run", store)
    tracker.start("places", "pretrain simsiam", "k1", {"kind": "pretrain"})
    tracker.dataset("flare22", "0123456789abcdef" * 4, "shards/flare22")
    assert tracker.flush(force=True) is None
    experiment = MlflowClient(store).get_experiment_by_name("places")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    home = Path(store.removeprefix("sqlite:///")).parent
    assert experiment.artifact_location == (home / "artifacts" / "places").as_uri()
    (run,) = _runs(store, "places")
    (dataset,) = [item.dataset for item in run.inputs.dataset_inputs]
    assert (dataset.name, dataset.digest, json.loads(dataset.source)) == (
        "flare22", ("0123456789abcdef" * 4)[:36], {"uri": "shards/flare22"},
    )  # fmt: skip
