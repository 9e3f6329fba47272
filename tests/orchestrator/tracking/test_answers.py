"""What an experiment's page says as it opens, whoever serves it."""

import getpass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from orchestrator.tracking.tags import DESCRIPTION
from orchestrator.tracking.tracker import Tracker


def _answered(store: str, folder: Path, kind: str, name: str, said: str) -> Tracker:
    tracker = Tracker(folder / f"{kind}-{name}", store)
    tracker.start(folder.name, f"{kind} {name}", f"{kind}-{name}", {"kind": kind})
    tracker.answer(f"{kind}: 0.399 SimSiam ({name})", "SimSiam", said)
    tracker.finish("FINISHED")
    assert tracker.flush(force=True) is None
    return tracker


def _page(store: str, name: str) -> tuple[Experiment, list[Run]]:
    client = MlflowClient(store)
    found = client.get_experiment_by_name(name)
    assert found is not None
    return found, list(client.search_runs([found.experiment_id]))


@pytest.mark.slow
def test_the_first_line_of_an_experiment_s_page_is_what_its_newest_table_found(store: str, tmp_path: Path) -> None:
    _answered(store, tmp_path, "table", "first", "table first: no row is best: SimSiam (dice_mean 0.399)")
    _answered(store, tmp_path, "sweep", "iou", "sweep iou: best is trial 1: collapse 0.18")
    _answered(store, tmp_path, "table", "second", "table second: a*b is better than each other row")
    page, runs = _page(store, tmp_path.name)
    assert page.tags[DESCRIPTION].split("\n\n") == [
        r"table second: a\*b is better than each other row",
        r"table first: no row is best: SimSiam (dice\_mean 0.399)",
        "sweep iou: best is trial 1: collapse 0.18",
    ]
    assert sorted(run.info.run_name for run in runs) == [
        "sweep: 0.399 SimSiam (iou)",
        "table: 0.399 SimSiam (first)",
        "table: 0.399 SimSiam (second)",
    ]


@pytest.mark.slow
def test_what_a_person_wrote_on_the_page_stays(store: str, tmp_path: Path) -> None:
    _answered(store, tmp_path, "table", "first", "table first: SimSiam is better")
    client, (page, _) = MlflowClient(store), _page(store, tmp_path.name)
    client.set_experiment_tag(page.experiment_id, DESCRIPTION, "Ask Ada before you delete these.")
    _answered(store, tmp_path, "table", "second", "table second: VoCo is better")
    assert _page(store, tmp_path.name)[0].tags[DESCRIPTION] == "Ask Ada before you delete these."


@pytest.mark.slow
def test_a_run_says_how_it_goes_who_started_it_and_by_which_command(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["/opt/venv/bin/raydiology", "table", "/home/ada/study/organs.yaml", "budget.epochs=2"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setenv("RAYDIOLOGY_COMMIT", "0123abcd")
    parent = Tracker(tmp_path / "table", store)
    parent.start(tmp_path.name, "table organs", "parent", {"kind": "table"})
    monkeypatch.setattr("sys.argv", ["default_worker.py", "--node-ip-address=10.0.0.1"])
    child = Tracker(tmp_path / "pretrain", store)
    child.start(tmp_path.name, "SimSiam", "child", {"kind": "pretrain"}, parent.folder)
    for tracker in (parent, child):
        assert tracker.flush(force=True) is None
    _, runs = _page(store, tmp_path.name)
    origins = {
        (run.data.tags["mlflow.user"], run.data.tags["mlflow.source.name"], run.data.tags["mlflow.source.git.commit"])
        for run in runs
    }
    assert origins == {(getpass.getuser(), "raydiology table organs.yaml budget.epochs=2", "0123abcd")}
    assert {run.data.tags["state"] for run in runs} == {"running"}
    child.finish("KILLED")
    assert child.flush(force=True) is None
    assert child.run_id is not None
    assert MlflowClient(store).get_run(child.run_id).data.tags["state"] == "stopped"


@pytest.mark.slow
def test_a_trial_keeps_the_state_that_its_sweep_gave_it(store: str, tmp_path: Path) -> None:
    trial = Tracker(tmp_path / "trial", store)
    trial.start(tmp_path.name, "trial 0", "trial", {"kind": "trial"})
    trial.tags({"state": "pruned"})
    trial.finish("KILLED")
    assert trial.flush(force=True) is None
    _, (run,) = _page(store, tmp_path.name)
    assert (run.data.tags["state"], run.info.status) == ("pruned", "KILLED")
