"""The address that `raydiology ui` opens, what is sent before, and how it ends."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from orchestrator import cli
from orchestrator.machine import doctor
from orchestrator.results import ui
from orchestrator.results.usual import JudgedBy, note
from orchestrator.tracking.outbox import waiting
from orchestrator.tracking.pages import SHARED_VIEW
from orchestrator.tracking.tracker import Tracker


@pytest.mark.slow
def test_the_page_opens_at_the_newest_experiment_and_what_waited_is_sent(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    commands: list[list[str]] = []

    def run(command: list[str], environment: dict[str, str]) -> int:
        commands.append(command)
        return 0

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    Tracker(tmp_path / "waiting", uri).start("later", "table first", "k1", {"kind": "table"})
    note(tmp_path / "waiting", JudgedBy(metric="dice_mean"))
    monkeypatch.setattr(ui, "_run_until_told", run)
    assert ui.serve(tmp_path, 5001) == 0
    found = MlflowClient(uri).get_experiment_by_name("later")
    assert found is not None
    assert f"http://127.0.0.1:5001/#/experiments/{found.experiment_id}/runs?" in capsys.readouterr().out
    view = json.loads(found.tags[f"{SHARED_VIEW}{ui.LISTING}"])
    assert view["selectedColumns"][:3] == ["metrics.`best/dice_mean`", "tags.`row`", "tags.`seed`"]
    assert waiting(tmp_path) == []
    (command,) = commands
    assert command[command.index("--backend-store-uri") + 1] == uri


def test_a_mistyped_home_is_refused_by_name_and_none_is_made(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs", "mlflow.db").touch()
    assert cli.main(["ui", "--home", "rnus"]) == 2
    assert capsys.readouterr().err == (
        "ui: --home rnus: no runs there; expected a folder that a training, a table or a sweep has written; did you "
        "mean runs?\n"
    )
    assert doctor._mlflow(Path("rnus")).found == "no store in rnus yet; the first run makes it"
    assert doctor._outbox(Path("rnus")).well
    assert cli.main(["compare", "--home", "rnus"]) == 2
    assert cli.main(["compare", "--home", "rnus", "--uri", f"sqlite:///{tmp_path}/rnus/mlflow.db"]) == 2
    assert "no such store; expected one that runs were sent to" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("told", ui.ENDING)
def test_whatever_ends_the_command_ends_the_server(told: signal.Signals) -> None:
    code = """
        import os, sys
        from orchestrator.results.ui import _run_until_told
        server = "import os, time; time.sleep(0.5); print(os.getpid(), flush=True); time.sleep(600)"
        sys.exit(_run_until_told([sys.executable, "-c", server], dict(os.environ)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        process.send_signal(told)
        assert process.wait(60) == 0
    assert not psutil.pid_exists(server)


def test_a_server_that_ends_by_itself_gives_its_exit_code() -> None:
    assert ui._run_until_told([sys.executable, "-c", "raise SystemExit(3)"], {}) == 3
