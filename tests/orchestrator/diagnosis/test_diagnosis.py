"""Doctor of a run: it names planted faults by their numbers, and is silent on sound runs of all methods."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods import METHODS
from orchestrator.cli import main
from orchestrator.commands import console
from orchestrator.diagnosis.curves import at_the_constant
from orchestrator.diagnosis.curves import causes as causes_of_curves
from orchestrator.diagnosis.diagnosis import Diagnosis, diagnose
from orchestrator.diagnosis.labels import _accuracy
from orchestrator.diagnosis.record import TrainingRecord, records_of
from orchestrator.history import HISTORY, append
from tests.faults import CLASSIFICATION, FAULTS, SOUND, Sound, experiment_of, stage, task

LEAST_NAMED = 18


def said(found: list[Diagnosis]) -> list[str]:
    assert [one.unseen for one in found if one.unseen] == []
    return [str(cause) for one in found for cause in one.causes]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_causes_of_at_least_18_of_20_planted_faults_are_named(tmp_path: Path) -> None:
    named: dict[str, bool] = {}
    for place, fault in enumerate(FAULTS):
        causes = [cause for one in diagnose(fault.run(tmp_path / str(place))) for cause in one.causes]
        named[fault.what] = any(fault.names(cause) for cause in causes)
    assert len(named) == 20
    assert sum(named.values()) >= LEAST_NAMED, [what for what, found in named.items() if not found]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_doctor_is_silent_on_20_sound_runs_or_more_of_all_methods(tmp_path: Path) -> None:
    loud = {sound.what: said(diagnose(sound.run(tmp_path / str(place)))) for place, sound in enumerate(SOUND)}
    assert len(loud) >= 20
    assert {what: causes for what, causes in loud.items() if causes} == {}
    tried = json.dumps([sound.tree for sound in SOUND])
    assert [name for name in METHODS if f'"name": "{name}"' not in tried] == []


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Sound("classification", task(CLASSIFICATION)).run(tmp_path_factory.mktemp("sound"))


@pytest.mark.slow
def test_doctor_is_typed_with_a_run_and_says_in_one_line_that_nothing_was_found(
    sound_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 300)
    assert main(["doctor", str(sound_run)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("finetune: nothing found; looked at 24 steps, loss 0.")
    assert line.endswith("(best constant prediction: 0.6931), 8 samples drawn again, the newest checkpoint")


@pytest.mark.slow
def test_a_run_with_a_fault_ends_the_command_with_1_and_a_line_of_cause_number_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = FAULTS[3].run(tmp_path)
    assert main(["doctor", str(folder)]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "pretrain: constant voxels: 8 of the first 8 samples have the same value in every voxel (0 in the first); "
        "expected none or few; ingest again with a recipe whose window holds these scans' values"
    )


@pytest.mark.slow
def test_shards_that_are_gone_are_said_to_be_not_looked_at(
    sound_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / sound_run.name
    shutil.copytree(sound_run, moved)
    text = (moved / "experiment.json").read_text()
    (moved / "experiment.json").write_text(text.replace("/shards", "/gone"))
    assert main(["doctor", str(moved)]) == 1
    out = capsys.readouterr().out
    assert "finetune: not looked at: samples and weights: " in out
    assert "index.parquet" in out
    assert "nothing found; looked at 24 steps" in out


def test_a_folder_that_is_no_run_s_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert (
        "no experiment.json there; expected the folder of a pretraining or a fine-tuning" in capsys.readouterr().err
    )


def record(tmp_path: Path, lines: list[dict[str, Any]], **changes: Any) -> TrainingRecord:
    """Return the record of a pretraining with a history made by hand."""
    folder = tmp_path / "tried" / "pretrain-0123456789abcdef"
    folder.mkdir(parents=True)
    experiment = experiment_of(tmp_path, "gone", {**stage("voco"), **changes})
    (folder / "experiment.json").write_text(experiment.model_dump_json())
    append(folder / HISTORY, [{"stage": "pretrain", "step": step, **line} for step, line in enumerate(lines)])
    return records_of(folder)[0]


def line(loss: float, **more: float) -> dict[str, float]:
    return {"loss": loss, "loss_of_constant": 1.0, "lr": 0.003, "grad_norm": 1.0, **more}


def test_a_loss_that_stays_at_that_of_a_constant_is_named_after_500_steps_and_not_before(tmp_path: Path) -> None:
    flat = record(tmp_path / "long", [line(1.0)] * 500)
    assert [cause.name for cause in at_the_constant(flat)] == ["nothing learnt"]
    assert [*at_the_constant(record(tmp_path / "short", [line(1.0)] * 499))] == []
    assert [*at_the_constant(record(tmp_path / "learnt", [line(1.0)] * 100 + [line(0.9)] * 400))] == []


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([line(1.0)] * 20 + [line(3.0)] * 20, "learning rate too high: the loss rose from 1 to 3"),
        (
            [line(1.0)] * 20 + [line(1.0, grad_norm=200.0)] * 20,
            "learning rate too high: the gradient norm rose from 1 to 200",
        ),
        ([line(1.0, collapse=0.2), *[line(1.0, collapse=0.99)] * 20], "collapse: the outputs of a batch are alike"),
        ([line(1.0, dead_positives=1.0)] * 20, "dead positives: the ReLU silences 100 %"),
    ],
)
def test_a_history_alone_shows_its_cause(lines: list[dict[str, Any]], cause: str, tmp_path: Path) -> None:
    (found,) = causes_of_curves(record(tmp_path, lines))
    assert str(found).startswith(cause)


def test_a_training_that_ended_on_a_loss_that_is_no_number_is_named_with_the_step(tmp_path: Path) -> None:
    begun = record(tmp_path, [line(1.0, grad_norm=7e8)])
    fatal = "step 1: loss is nan; the optimiser has not moved. The batch held samples s001"
    append(begun.folder / HISTORY, [{"stage": "pretrain", "fatal": fatal}])
    (found,) = causes_of_curves(records_of(begun.folder)[0])
    assert found.shown == "step 1: loss is nan, after a gradient norm of 7e+08; expected a number"
    assert "s001" not in str(found)


def test_one_number_tells_a_class_only_where_neighbours_by_it_have_the_same() -> None:
    classes = np.arange(40) % 2
    drawn = np.random.default_rng(1).normal(size=40)
    assert _accuracy(classes + 0.01 * drawn, classes) == 1.0
    assert _accuracy(drawn, classes) < 0.8
    assert _accuracy(np.zeros(40), classes) < 0.8
