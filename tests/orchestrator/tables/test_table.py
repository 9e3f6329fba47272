"""Tables: the experiment of every trial, refusal before anything runs, and running only what is missing."""

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils
from rich.console import Console

from orchestrator import cli
from orchestrator.cluster import connection
from orchestrator.config.refusal import ConfigError
from orchestrator.history import HISTORY
from orchestrator.results.run_cards import members
from orchestrator.runs import identity
from orchestrator.runs.labelled import downstream_of, labelled_samples
from orchestrator.runs.run import RESULT
from orchestrator.tables import job
from orchestrator.tables import run as runs
from orchestrator.tables import table as tables
from orchestrator.tables.job import EndedTrial
from orchestrator.tables.outcome import Outcome
from orchestrator.tables.run import run
from orchestrator.terminal import progress
from orchestrator.terminal.display import Display
from orchestrator.tracking.store import STORE, sqlite_address
from orchestrator.tracking.tracker import Tracker
from tests.experiments import UNET, tiny_experiment, tiny_segmentation
from tests.points import assert_points_equal_history
from tests.shardsets import write_slices


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=8, size=40)


def hours_in(folder: Path) -> float:
    """Return the hours of a training's steps: 8 samples each when pretraining, 12 when fine-tuning."""
    size = 8 if folder.name.startswith("pretrain-") else 12
    steps = map(json.loads, (folder / HISTORY).read_text().splitlines())
    return sum(size / line["samples_per_s"] for line in steps if "samples_per_s" in line) / 3600


def write_table(folder: Path, shards: str, **changes: Any) -> Path:
    """Write a base experiment and a table over it: from scratch, and one pretrained row."""
    experiment = tiny_experiment("tiny", shards, folder / "runs", 3, UNET, downstream=tiny_segmentation(shards))
    table = {
        "name": "two-rows",
        "title": "Two rows",
        "experiment": "experiment.yaml",
        "reference": "scratch",
        "curves": ["collapse"],
        "rows": [
            {"name": "scratch", "overrides": {"method": {"name": "scratch"}}, "pretrain_seeds": []},
            {"name": "[0.3, 0.6]", "pretrain_seeds": [5], "paper": {"mean": 0.853}},
        ],
        **changes,
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(table))
    return path


def test_every_trial_is_the_base_with_its_row_s_changes_and_seeds(tmp_path: Path, shards: str) -> None:
    path = write_table(tmp_path, shards, finetune_seeds=[1, 2])
    table = tables.load(path)
    found = [(t.row, e.pretraining[0].method.name, e.seed, e.downstream.seed) for t, e in table.experiments]
    assert found == [
        ("scratch", "scratch", 0, 1),
        ("[0.3, 0.6]", "simsiam", 5, 1),
        ("scratch", "scratch", 0, 2),
        ("[0.3, 0.6]", "simsiam", 5, 2),
    ]
    assert table.folder.parent == tmp_path / "runs" / "tiny"
    assert table.folder.name.startswith("table-two-rows-")


def test_every_fold_of_a_cross_validated_table_is_validated_on_once_per_repeat(tmp_path: Path, shards: str) -> None:
    table = tables.load(write_table(tmp_path, shards, num_folds=3))
    held_out: dict[str, list[str]] = {}
    for trial, experiment in table.experiments:
        labelled = labelled_samples(downstream_of(experiment))
        patients = set(labelled.shards.rows["patient"].take(labelled.val.row_ids).to_pylist())
        held_out[trial.row] = [*held_out.get(trial.row, []), *sorted(patients)]
        assert not patients & set(labelled.patients)
    assert {row: sorted(patients) for row, patients in held_out.items()} == {
        row: [f"p{number:03d}" for number in range(6)] for row in ("scratch", "[0.3, 0.6]")
    }
    assert tables.described(table.experiments[-1][0]).endswith("fine-tuning seed 0, fold 2 of 3")
    assert len({e.pretrain_key("digest") for t, e in table.experiments if t.pretrain_seed is not None}) == 1
    tables.check(table)


def test_a_table_over_another_base_has_another_folder_and_more_rows_or_other_machines_have_not(
    tmp_path: Path, shards: str
) -> None:
    path = write_table(tmp_path, shards)
    folder = tables.load(path).folder
    moved = tables.load(path, [f"home={tmp_path / 'elsewhere'}", "resources.workers=2"])
    assert (moved.folder.parents[1], moved.folder.name) == (tmp_path / "elsewhere", folder.name)
    others = [write_slices(tmp_path / "others", num_patients=4, size=40, seed=1), shards]
    changes = (["budget.steps=7"], ["downstream.label_fraction=0.5"], [f"data.shards={others[0]}"])
    assert len({folder, *(tables.load(path, overrides).folder for overrides in changes)}) == 4
    assert tables.load(write_table(tmp_path, shards, finetune_seeds=[1, 2])).folder == folder


def test_a_folder_that_holds_another_table_is_refused_and_an_extended_one_is_not(tmp_path: Path, shards: str) -> None:
    table = tables.load(write_table(tmp_path, shards))
    identity.mark(table.folder, table.identity)
    scratch = {"name": "scratch", "overrides": {"method": {"name": "scratch"}}, "pretrain_seeds": []}
    tables.check(tables.load(write_table(tmp_path, shards, rows=[scratch, {"name": "new"}])))
    others = [{"name": "scratch", "overrides": {"method.crops.iou": [0, 1]}}]
    with pytest.raises(
        ValueError, match=r"holds another table, that of table.yaml with rows scratch, \[0.3, 0.6\], w"
    ):
        tables.check(tables.load(write_table(tmp_path, shards, rows=others)))
    copied = write_table(tmp_path, shards).rename(tmp_path / "copy.yaml")
    with pytest.raises(
        ValueError, match=r"table two-rows of copy.yaml: .*give one of them another name: in its file"
    ):
        tables.check(tables.load(copied))


def test_the_command_line_changes_every_row_but_not_what_tells_them_apart(tmp_path: Path, shards: str) -> None:
    path = write_table(tmp_path, shards)
    table = tables.load(path, ["budget.steps=7", "downstream.seed=9", "method.name=simsiam"])
    assert [e.budget.steps for _, e in table.experiments] == [7, 7]
    assert [e.downstream.seed for _, e in table.experiments] == [0, 0]
    assert [e.pretraining[0].method.name for _, e in table.experiments] == ["scratch", "simsiam"]


def test_a_misspelt_field_of_a_row_is_refused_with_file_and_row(tmp_path: Path, shards: str) -> None:
    rows = [{"name": "scratch"}, {"name": "b", "overrides": {"method.crop.iou": [0, 1]}}]
    with pytest.raises(ConfigError, match=r"table\.yaml, row b:\n  method\.crop: no such field"):
        tables.load(write_table(tmp_path, shards, rows=rows))


def test_a_misspelt_field_of_the_table_is_refused_in_words(tmp_path: Path, shards: str) -> None:
    with pytest.raises(ConfigError, match=r"table\.yaml:\n  repeats: no such field"):
        tables.load(write_table(tmp_path, shards, repeats=3))


def test_a_row_that_cannot_work_is_refused_before_anything_runs(tmp_path: Path, shards: str) -> None:
    rows = [{"name": "scratch"}, {"name": "apart", "overrides": {"method.crops.iou": [0, 0]}}]
    table = tables.load(write_table(tmp_path, shards, rows=rows))
    with pytest.raises(ValueError, match=r"IoU interval \[0, 0\].*widen method.crops.iou"):
        run(table, lambda text: None)
    assert not (tmp_path / "runs").exists()


def test_one_trial_at_a_time_runs_in_this_process_in_order(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, said = tables.load(write_table(tmp_path, shards)), list[str]()
    monkeypatch.setattr(job, "_trained", lambda *trial: EndedTrial(Outcome(trial[2], float(os.getpid()))))
    lines = runs._run_trials(table, 1, Tracker(tmp_path / "tracked", "unused"), said.append)
    assert [line.summary.values for line in lines] == [(float(os.getpid()),)] * 2
    assert [text.split(",")[0] for text in said] == ["1 of 2: scratch", "2 of 2: [0.3"]


SCRATCH = {"name": "scratch", "overrides": {"method": {"name": "scratch"}}, "pretrain_seeds": []}
ABSENT = {"name": "PCRLv2", "missing": "it is not built", "paper": {"mean": 0.9}}


def test_a_table_with_a_missing_row_is_checked_run_and_written_without_it(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, said = tables.load(write_table(tmp_path, shards, rows=[ABSENT, SCRATCH])), list[str]()
    tables.check(table)
    assert table.identity["rows"] == {"scratch": {"method": {"name": "scratch"}}}
    monkeypatch.setattr(job, "_trained", lambda *trial: EndedTrial(Outcome(trial[2], 0.5, run="finetune-1")))
    lines = runs._run_trials(table, 1, Tracker(tmp_path / "tracked", "unused"), said.append)
    assert [(line.name, line.summary.mean, line.missing) for line in lines] == [
        ("PCRLv2", None, "it is not built"),
        ("scratch", 0.5, None),
    ]
    assert [text.split(",")[0] for text in said] == ["1 of 1: scratch"]
    assert "| PCRLv2 | missing |" in (table.folder / "table.md").read_text()
    assert set(members(table.folder).values()) == {"scratch"}


def test_a_row_that_starts_from_a_file_is_missing_until_the_file_is_there(tmp_path: Path, shards: str) -> None:
    file = tmp_path / "med3d.safetensors"
    start = {"name": "Med3D", "overrides": {"start": {"weights": str(file)}}, "paper": {"mean": 0.8}}
    path = write_table(tmp_path, shards, rows=[SCRATCH, start])
    absent = tables.load(path)
    assert [row.missing for row in absent.config.rows] == [None, "med3d.safetensors is not there"]
    assert [trial.row for trial, _ in absent.experiments] == ["scratch"]
    tables.check(absent)
    file.write_bytes(b"weights")
    assert [trial.row for trial, _ in tables.load(path).experiments] == ["scratch", "Med3D"]
    file.unlink()
    with pytest.raises(
        ConfigError, match=r"row Med3D: med3d.safetensors is not there, so that nothing can be tested"
    ):
        tables.load(write_table(tmp_path, shards, rows=[SCRATCH, start], reference="Med3D"))


def test_a_row_that_can_be_run_now_goes_on_in_the_table_s_folder(tmp_path: Path, shards: str) -> None:
    before = tables.load(write_table(tmp_path, shards, rows=[SCRATCH, ABSENT]))
    identity.mark(before.folder, before.identity)
    now = tables.load(write_table(tmp_path, shards, rows=[SCRATCH, {"name": "PCRLv2", "paper": {"mean": 0.9}}]))
    tables.check(now)
    assert now.folder == before.folder


@pytest.mark.slow
def test_a_table_of_missing_rows_alone_is_shown_and_tracked_without_ray_or_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(connection, "connected", lambda: pytest.fail("nothing is to run"))
    path = write_table(tmp_path, str(tmp_path / "nowhere"), rows=[ABSENT], reference=None)
    assert cli.main(["table", str(path), "--dry-run"]) == 0
    assert "missing (it is not built): PCRLv2" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    for _ in range(2):
        assert cli.main(["table", str(path)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "│ PCRLv2 │ missing │ - │ 0.900 │" in said
        assert f"files: {tables.load(path).folder}" in said
    client = MlflowClient(sqlite_address(tmp_path / "runs" / STORE))
    experiment = client.get_experiment_by_name("tiny")
    runs_of = client.search_runs([experiment.experiment_id])
    (table,) = [run for run in runs_of if run.data.tags["kind"] == "table"]
    assert "PCRLv2 (missing: it is not built)" in table.data.tags["mlflow.note.content"]
    assert table.info.run_name == "table two-rows"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_table_runs_what_is_missing_and_only_that_also_once_its_home_was_moved(
    tmp_path: Path,
    shards: str,
    ray_cluster: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said: list[str] = []
    place, moved = tmp_path / "a place? 100% [ü]%20", tmp_path / "moved & renamed? 5%"
    place.mkdir()
    scratch = {"name": "scratch", "overrides": {"method": {"name": "scratch"}}, "pretrain_seeds": []}
    runs = place / "runs" / "tiny"
    pretrained = {"name": "[0.3, 0.6]", "pretrain_seeds": [5]}
    diverging = {**scratch, "name": "diverging"}
    diverging["overrides"] = {**scratch["overrides"], "downstream.optimiser.lr": 1e30}
    path = write_table(place, shards, rows=[diverging, scratch, pretrained], concurrent=2, also=["hours"])
    table, log = tables.load(path), io.StringIO()
    with progress.showing_on(Display(Console(file=log, width=200), 0.5)):
        lines = run(table, said.append)
    assert any(re.match(r"\d of 3: scratch, not pretrained, fine-tuning seed 0: score 0\.", line) for line in said)
    assert [line.name for line in lines] == ["diverging", "scratch", "[0.3, 0.6]"]
    assert [line.summary.num_values for line in lines] == [0, 1, 1]
    assert re.search(r"loss is nan|loss is inf|gradient norm is", lines[0].failures[0])
    assert (len(list(runs.glob("pretrain-*"))), len(list(runs.glob("finetune-*")))) == (1, 3)
    assert {path.name for path in table.folder.glob("*.*")} >= {"table.md", "table.csv", "curve-collapse.png"}
    for told in (
        r"^table two-rows: trial 0 of 3$",
        r"^trial 3 of 3, \[0.3, 0.6\]; pretrain: starting workers",
        r"^trial 3 of 3, \[0.3, 0.6\]: pretrain: step 3 of 3 after .*, loss -?\d",
        r"^trial 3 of 3, \[0.3, 0.6\]: finetune: step 4 of 4 after",
        r"^table two-rows: trial \d of 3, .* per trial, .* left$",
    ):
        assert re.search(told, log.getvalue(), re.MULTILINE), told
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", log.getvalue())
    with (table.folder / "table.csv").open(newline="") as file:
        named = [line["run"] for line in csv.DictReader(file)]
    finished = {result.parent for result in runs.glob(f"*/{RESULT}")}
    assert named[0] == ""
    assert sorted(named[1:]) == sorted(run.name for run in finished if run.name.startswith("finetune-"))
    (pretraining,) = runs.glob("pretrain-*")
    for line, trainings in zip(lines[1:], ([runs / named[1]], [pretraining, runs / named[2]]), strict=True):
        assert line.also["hours"].mean == pytest.approx(sum(hours_in(folder) for folder in trainings))

    histories = {run.relative_to(place): (run / HISTORY).read_bytes() for run in finished}
    place.rename(moved)
    utils._artifact_repos_cache.clear()  # MLflow remembers where artifacts were for as long as the process lives
    again = {**pretrained, "finetune_seeds": [0, 1]}
    path = write_table(moved, shards, rows=[diverging, scratch, again])
    assert cli.main(["table", str(path)]) == 1
    report = tables.load(path).folder / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {report}"
    assert all(said in report.read_text() for said in ("diverging: ", "Worst case", f"raydiology table {path.name}"))
    assert {run: (moved / run / HISTORY).read_bytes() for run in histories} == histories
    finished = {result.parent for result in moved.glob(f"runs/tiny/*/{RESULT}")}
    assert len(finished) == len(histories) + 1
    for folder in finished:
        assert_points_equal_history(folder)
    capsys.readouterr()
    assert cli.main(["compare", str(tables.load(path).folder)]) == 0
    printed = capsys.readouterr().out
    assert "score of 4 fine-tunings" in printed
    assert "among the artifacts of 'table two-rows'" in printed
    client = MlflowClient(sqlite_address(moved / "runs" / STORE))
    (named,) = client.search_runs(["1"], "tags.kind = 'table'")
    leader, score = named.data.tags["row"], f"{named.data.metrics['best/score']:.3f}"
    assert named.info.run_name == f"table: {score} {leader} (two-rows)"
    said = f"table two-rows: no row is best: {leader} (score {score}) has the best mean, not distinguishable from "
    assert named.data.tags["answer"].startswith(said)
    assert named.data.tags["state"] == "done"
    (pretraining,) = (run for run in finished if run.name.startswith("pretrain-"))
    assert cli.main(["export", str(pretraining), "--out", str(tmp_path / "out")]) == 0
    assert not place.exists(), sorted(str(path.relative_to(tmp_path)) for path in place.glob("**/*"))
