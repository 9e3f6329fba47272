"""The address that `raydiology ui` opens, and what is sent before."""

from pathlib import Path

from mlflow import MlflowClient

from orchestrator import ui
from orchestrator.tracking import Tracker, waiting


def test_the_page_opens_at_the_newest_experiment_and_what_waited_is_sent(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    commands: list[list[str]] = []

    class Ended:
        returncode = 0

    def run(command: list[str], **options) -> Ended:
        commands.append(command)
        return Ended()

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    Tracker(tmp_path / "waiting", uri).start("later", "pretrain simsiam", "k1")
    monkeypatch.setattr(ui.subprocess, "run", run)
    assert ui.serve(tmp_path, 5001) == 0
    found = MlflowClient(uri).get_experiment_by_name("later")
    assert found is not None
    assert f"http://127.0.0.1:5001/#/experiments/{found.experiment_id}/runs?" in capsys.readouterr().out
    assert waiting(tmp_path) == []
    (command,) = commands
    assert command[command.index("--backend-store-uri") + 1] == uri
