"""The store of a home: its name, its move, and several processes that make it at once."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.outbox import OUTBOX, posted, waiting
from orchestrator.tracking.store import default_uri, sqlite_address, sqlite_file
from orchestrator.tracking.tracker import Tracker

ODD = "a home? 100% of #1 [ü]%20"


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_an_address_leads_back_to_its_file(tmp_path: Path) -> None:
    file = tmp_path / ODD / "mlflow.db"
    assert sqlite_file(sqlite_address(file)) == file
    assert sqlite_file(f"sqlite:///{tmp_path}/plain.db") == tmp_path / "plain.db"
    assert sqlite_file("http://127.0.0.1:5000") is None


BEFORE = """
    import sys
    from pathlib import Path
    from orchestrator.tracking.store import default_uri
    from orchestrator.tracking.tracker import Tracker
    home = Path(sys.argv[1])
    table, run = home / "tiny" / "table-1", home / "tiny" / "pretrain-1"
    Tracker(table, default_uri(home)).start("tiny", "table", "t1")
    tracker = Tracker(run, default_uri(home))
    tracker.start("tiny", "pretrain", "k1", parent=table)
    for name in ("first.txt", "second.txt"):
        (run / name).write_text(name)
        tracker.artifact(run / name)
        if name == "first.txt":  # the second waits while the home is moved
            assert tracker.flush(force=True) is None
"""


@pytest.mark.slow
def test_an_oddly_named_home_keeps_its_artifacts_when_it_is_moved(tmp_path: Path) -> None:
    home, moved = tmp_path / ODD / "runs", tmp_path / "moved & renamed? 5%"
    subprocess.run([sys.executable, "-c", textwrap.dedent(BEFORE), str(home)], check=True, timeout=200)
    assert [path.name for path in tmp_path.iterdir()] == [ODD]
    home.rename(moved)
    home.parent.rmdir()
    later = Tracker(moved / "tiny" / "pretrain-1", default_uri(moved))
    assert waiting(moved) == [later.folder]
    assert later.flush(force=True) is None
    client = MlflowClient(default_uri(moved))
    assert later.run_id is not None
    assert [file.path for file in client.list_artifacts(later.run_id)] == ["first.txt", "second.txt"]
    assert Path(client.download_artifacts(later.run_id, "first.txt")).read_text() == "first.txt"
    run = client.get_run(later.run_id)
    (table,) = client.search_runs([run.info.experiment_id], "tags.run_key = 't1'")
    assert run.data.tags["mlflow.parentRunId"] == table.info.run_id
    assert [path.name for path in tmp_path.iterdir()] == [moved.name]


@pytest.mark.slow
def test_records_of_a_run_name_nothing_outside_of_its_home(tmp_path: Path) -> None:
    run = tmp_path / "home" / "tiny" / "pretrain-1"
    tracker = Tracker(run, default_uri(tmp_path / "home"))
    tracker.start("tiny", "pretrain", "k1", parent=tmp_path / "home" / "tiny" / "sweep-1" / "trials" / "000")
    tracker.artifact(run / "pictures" / "views.png")
    tracker.artifact(tmp_path / "elsewhere.png")
    assert [line["parent"] for line in posted(run, ("start",))] == ["../sweep-1/trials/000"]
    assert [line["path"] for line in posted(run, ("artifact",))] == [
        "pictures/views.png",
        f"{tmp_path}/elsewhere.png",
    ]


@pytest.mark.slow
def test_four_processes_that_start_at_once_in_a_new_home_share_one_store(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        import orchestrator.tracking.mlflow_calls
        from orchestrator.tracking.store import default_uri
        from orchestrator.tracking.tracker import Tracker
        home, key = Path(sys.argv[1]), sys.argv[2]
        print("ready", flush=True)
        sys.stdin.readline()
        tracker = Tracker(home / "tiny" / key, default_uri(home))
        tracker.start("tiny", f"pretrain {key}", key)
        sys.exit(tracker.flush(force=True) or 0)
    """
    home = tmp_path / "new home"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(home), f"k{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [(process.communicate(timeout=200)[1], process.returncode) for process in processes] == [("", 0)] * 4
    client = MlflowClient(default_uri(home))
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["run_key"] for run in runs) == ["k0", "k1", "k2", "k3"]
    assert all((home / "tiny" / f"k{number}" / OUTBOX).is_file() for number in range(4))
