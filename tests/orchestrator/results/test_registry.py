"""`raydiology export --register`, as a person types it."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator import cli
from orchestrator.results.usual import JudgedBy, note
from orchestrator.runs.run import RESULT
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.tracking.test_models import pretraining


@pytest.fixture
def table(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of two rows whose runs are logged to the shared store; a pretraining stands for the winner."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    best = pretraining(store, tmp_path / "home")
    best.finish("FINISHED")
    (best.folder / RESULT).write_text(json.dumps({"scores": {"score": 0.5}}))
    table = Tracker(best.folder.parent / "table-two", store)
    table.start("home", "table two", "two", {"kind": "table"})
    table.answer("table: 0.5 SimSiam (two)", "SimSiam", "table two: SimSiam is better than each other row")
    table.finish("FINISHED")
    note(table.folder, JudgedBy(metric="score"))
    rows = ["row,run", "SimSiam,pretrain-1", "scratch,finetune-2", "SimSiam,gone"]
    (table.folder / "table.csv").write_text("\n".join(rows))
    return table.folder


@pytest.mark.slow
def test_the_winner_of_a_table_is_registered_once_with_its_card(
    store: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert cli.main(["export", str(table), "--register", "organs", "--out", str(table / "out")]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == f"winner: {table.parent / 'pretrain-1'}"
        assert said[-1] == f"registered: organs, version 1, in MLflow at {store}"
    assert (table / "out" / "load.py").is_file()
    client = MlflowClient(store)
    (version,) = client.search_model_versions("name = 'organs'")
    assert version.tags["row"] == "SimSiam, IoU [0.3, 0.6]"
    assert "## Licence" in (version.description or "")
    assert version.source is not None
    assert (Path(version.source.removeprefix("file://")) / "encoder.safetensors").is_file()


@pytest.mark.slow
def test_what_cannot_be_registered_is_refused_in_words(
    store: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert cli.main(["export", *words]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert refused(str(table)) == (
        "export: nothing to do; give a folder with --out, or the name of a model with --register, or both"
    )
    assert refused(str(table), "--register", "a/b").endswith(
        "does not take it: Invalid model name 'a/b'. Names cannot contain '/' or ':'.; give another name"
    )
    assert "only what is registered goes to MLflow" in refused(str(table), "--out", "x", "--uri", store)
    assert "no run there; give the folder" in refused(str(tmp_path), "--register", "organs")
    elsewhere = f"sqlite:///{tmp_path}/none.db"
    assert refused(str(table), "--register", "organs", "--uri", elsewhere) == (
        f"export: --uri {elsewhere}: MLflow there has no model of run pretrain-1; expected the MLflow that the run "
        f"is logged to, {store}"
    )
    (table / "table.csv").write_text("row,run\nscratch,finetune-2")
    assert "no row of it is first; run its command again" in refused(str(table), "--register", "organs")
