"""A forecast adds up what 20 timed steps say, leaves out what is done, and says how it knows."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml

from orchestrator.cli import main
from orchestrator.commands import console
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.history import HISTORY
from orchestrator.judging.validation import Rhythm
from orchestrator.runs import finetune, pretrain, stopwatch
from orchestrator.runs.course import Course
from orchestrator.runs.finetune import labelled_samples
from orchestrator.runs.forecast import (
    COMMAND_STARTS,
    FIXED_BYTES,
    REPORT_S,
    STORE_BYTES,
    TRAINING_STARTS,
    Forecast,
    finetuning_work,
    forecast,
    of_command,
    reports,
    stage_work,
    together,
)
from orchestrator.runs.outlook import missing
from orchestrator.runs.run import RESULT
from orchestrator.runs.timing import Spell, Timing
from orchestrator.runs.work import finetuning_folder
from orchestrator.training import optimiser as optimisers
from orchestrator.training.checkpoint import State, save
from tests.experiments import UNET, tiny_experiment, tiny_segmentation
from tests.shardsets import write_slices

TIMING = Timing(
    start=Spell(10, 4),
    steps=20,
    step=Spell(0.5, 0.4),
    reading=Spell(0.2, 0.1),
    watches=(Spell(3, 3),),
    saving=Spell(2, 1),
    host_bytes=400_000_000,
    checkpoint={"method.safetensors": 1000, "encoder.safetensors": 600},
    entry_bytes=250,
    numbers=8,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=8, size=40)


def tiny(shards: str, home: Path, steps: int = 60, **changes: object) -> Experiment:
    tree = tiny_experiment("tiny", shards, home, steps, encoder=UNET, **changes)
    return resolve(tree, [], "a test")


def wall_s(found: Forecast) -> float:
    assert found.time is not None
    return found.time.wall_s


def test_time_and_disk_are_sums_over_the_steps_and_what_comes_between(shards: str, tmp_path: Path) -> None:
    experiment = tiny(shards, tmp_path)
    work = replace(stage_work(Course.open(experiment), measured=False), timing=TIMING)
    found = forecast(work, experiment)
    between = 3 + 2 + REPORT_S * 6 + 10 * TRAINING_STARTS.wall_s  # one watch, one checkpoint, a report every 10 steps
    assert found.time is not None
    assert found.time.wall_s == pytest.approx(60 * 0.5 + between)
    assert found.time.cpu_s == pytest.approx(60 * 0.5 + 3 + 1 + 4 * TRAINING_STARTS.cpu_s)
    longer = replace(work, plan=replace(work.plan, schedule=replace(work.plan.schedule, total_steps=600)))
    assert reports(longer.plan, 0.5) == 60
    more = forecast(longer, experiment)
    assert wall_s(more) == pytest.approx(600 * 0.5 + between + REPORT_S * 54)
    assert more.disk_bytes > found.disk_bytes
    whole = of_command([found], experiment)
    assert wall_s(whole) == pytest.approx(60 * 0.5 + between + 10 * COMMAND_STARTS.wall_s)
    assert whole.memory_bytes == FIXED_BYTES + 400_000_000
    assert whole.disk_bytes - found.disk_bytes == STORE_BYTES
    # Checkpoint with history, the encoder in the folder and in MLflow, the history, and its numbers in MLflow.
    assert found.disk_bytes == (1600 + 60 * 300) + 2 * 600 + 60 * 300 + 60 * 8 * 210


@pytest.mark.parametrize(("every", "dense_from"), [(1, None), (2.5, None), (0.4, None), (3, 6), (0.5, 2)])
def test_validations_are_counted_without_going_through_the_steps(every: float, dense_from: float | None) -> None:
    rhythm = Rhythm(Fraction(7, 2), every, dense_from)
    for steps in (1, 3, 30, 41):
        assert abs(rhythm.times(steps) - sum(map(rhythm.due, range(1, steps + 1)))) <= (dense_from is not None)


def test_a_step_lasts_as_long_as_reading_for_it_where_that_is_slower(shards: str, tmp_path: Path) -> None:
    experiment = tiny(shards, tmp_path)
    work = stage_work(Course.open(experiment), measured=False)
    slow = replace(TIMING, reading=Spell(0.8, 0.5))
    fast_s, slow_s = (wall_s(forecast(replace(work, timing=timing), experiment)) for timing in (TIMING, slow))
    assert slow_s - fast_s == pytest.approx(60 * 0.3)


def test_sums_take_the_largest_memory_and_know_nothing_where_a_part_is_unknown(shards: str, tmp_path: Path) -> None:
    experiment = tiny(shards, tmp_path)
    work = stage_work(Course.open(experiment), measured=False)
    small, large = (
        forecast(replace(work, timing=replace(TIMING, host_bytes=number)), experiment) for number in (10**8, 10**9)
    )
    both = together([small, large.times(3)], "both")
    assert (both.trainings, both.memory_bytes) == (4, FIXED_BYTES + 10**9)
    assert wall_s(both) == pytest.approx(4 * wall_s(small))
    unknown = together([small, forecast(work, experiment)], "both")
    assert (unknown.time, unknown.memory_bytes) == (None, None)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("finetuned", [False, True])
def test_a_checkpoint_s_size_is_that_of_the_files_that_are_written(
    shards: str, tmp_path: Path, name: str, finetuned: bool
) -> None:
    wide = {"name": "unet", "spatial_dims": 2, "features": [16, 16, 32, 64, 64, 16]}
    task = {**tiny_segmentation(shards), "optimiser": {"name": name, "lr": 0.01}}
    experiment = tiny(shards, tmp_path, optimiser={"name": name, "lr": 0.01}, downstream=task)
    experiment = experiment.model_copy(update={"encoder": type(experiment.encoder).model_validate(wide)})
    if finetuned:
        labelled = labelled_samples(finetune.downstream_of(experiment))
        work = finetuning_work(experiment, labelled, measured=False)
        trainee = finetune.build_trainee(experiment, None)
    else:
        work = stage_work(Course.open(experiment), measured=False)
        trainee = pretrain.build_trainee(experiment, 0, {})
    optimiser = optimisers.build(trainee.method, work.plan.schedule.config)
    for parameter in trainee.method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    trainee.export(tmp_path, trainee.method)
    save(tmp_path, trainee.method.state_dict(), optimiser, State(), work.plan.stream)
    written = sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file())
    assert sum(work.files.values()) == pytest.approx(written, rel=0.05)


def test_steps_are_timed_after_the_warm_up_and_without_their_wait() -> None:
    watch = stopwatch.Stopwatch()
    speeds = [(1.0, 0.9)] * 3 + [(2.0, 0.5)] * 20 + [(9.0, 0.0)]
    watch.entries = [{"samples_per_s": 8 / wall, "data_wait_share": waited} for wall, waited in speeds]
    watch.ticks = [Spell(0, 0.25 * number) for number in range(len(speeds) + 1)]
    assert watch.step(8) == Spell(1.0, 0.25)
    watch = stopwatch.Stopwatch()
    assert [watch.over(step) for step in (22, 23, 24, 25)] == [False, False, True, False]
    watch = stopwatch.Stopwatch(ticks=[stopwatch.now() + Spell(-stopwatch.MOST_S)])
    assert [watch.over(step) for step in (6, 7, 8)] == [False, True, False], "slow steps are timed at least 3 times"


@pytest.mark.slow
def test_a_training_is_timed_in_process_with_its_own_views_files_and_watches(shards: str, tmp_path: Path) -> None:
    experiment = tiny(shards, tmp_path, steps=5, method={"projector_dim": 8, "predictor_dim": 4})
    found = stopwatch.timed(stopwatch.subject_of(experiment, 0))
    assert (found.steps, len(found.watches)) == (20, 1), "a short budget is timed for 20 steps, too"
    assert found.step.wall_s > 0
    assert set(found.checkpoint) == {
        "method.safetensors", "optimiser.pt", "encoder.safetensors", "encoder.json", "state.json"
    }  # fmt: skip
    assert not any(tmp_path.iterdir())


def test_without_measurement_time_is_that_of_an_earlier_run_alike(shards: str, tmp_path: Path) -> None:
    experiment = tiny(shards, tmp_path)
    assert missing(experiment, False, False, False)[0].time is None
    folder = tmp_path / "other" / "pretrain-0123"
    folder.mkdir(parents=True)
    entries = [{"stage": "pretrain", "step": step, "samples_per_s": 4.0} for step in range(40)]
    (folder / HISTORY).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / RESULT).write_text("{}")
    (folder / "experiment.json").write_text(tiny(shards, tmp_path, seed=7).model_dump_json())
    found = missing(experiment, False, False, False)[0]
    assert found.time == Spell(60 * 8 / 4.0)
    assert found.known["time"] == ("run pretrain-0123, if its machine was like this one",)
    wider = tiny(shards, tmp_path, budget={"batch_size": 16})
    assert missing(wider, False, False, False)[0].time is None


def test_what_is_done_takes_nothing(shards: str, tmp_path: Path) -> None:
    experiment = tiny(shards, tmp_path, downstream=tiny_segmentation(shards))
    assert [one.name for one in missing(experiment, True, False, False)] == ["pretrain", "finetune"]
    for folder, left in ((pretrain.folder_of(experiment), ["finetune"]), (finetuning_folder(experiment), [])):
        folder.mkdir(parents=True)
        (folder / RESULT).write_text("{}")
        assert [one.name for one in missing(experiment, True, False, False)] == left


def write_table(folder: Path, shards: str) -> Path:
    tree = tiny_experiment("tiny", shards, folder / "runs", 6, encoder=UNET, downstream=tiny_segmentation(shards))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    rows = [{"name": "scratch", "pretrain_seeds": []}, {"name": "simsiam", "pretrain_seeds": [0, 1]}]
    table = {"name": "t", "title": "t", "experiment": "tiny.yaml", "rows": rows, "reference": "scratch"}
    (folder / "table.yaml").write_text(yaml.safe_dump({**table, "finetune_seeds": [0]}))
    return folder / "table.yaml"


def forecast_rows(text: str) -> dict[str, list[str]]:
    """Return the cells of the printed forecast's rows by their first cell."""
    lines = text[text.index("to train") :].splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    return {cells[0]: cells[1:] for cells in rows}


@pytest.mark.slow
def test_a_table_s_forecast_leaves_out_what_is_done_and_counts_shared_trainings_once(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    table = write_table(tmp_path, shards)
    assert main(["table", str(table), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert {row: cells[0] for row, cells in forecast_rows(text).items()} == {
        "scratch": "1", "simsiam": "4", "in all": "5"
    }  # fmt: skip
    assert "time: unknown; --measure times 20 steps of each training on this machine" in text
    experiment = resolve(yaml.safe_load((tmp_path / "tiny.yaml").read_text()), ["seed=1"], "a test")
    done = pretrain.folder_of(experiment)
    done.mkdir(parents=True)
    (done / RESULT).write_text("{}")
    assert main(["table", str(table), "--dry-run"]) == 0
    assert forecast_rows(capsys.readouterr().out)["simsiam"][0] == "3"


@pytest.mark.parametrize("verb", ["pretrain", "probe", "finetune", "table", "sweep"])
def test_measure_without_a_dry_run_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "experiments/quickstart.yaml", "--measure"]) == 2
    assert "--measure: it times steps for the forecast of a dry run; add --dry-run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_and_a_pretraining_are_measured_as_typed(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    table = write_table(tmp_path, shards)
    assert main(["table", str(table), "--dry-run", "--measure"]) == 0
    text = capsys.readouterr().out
    rows = forecast_rows(text)
    assert [cells[0] for cells in rows.values()] == ["1", "4", "5"]
    assert all("unknown" not in cells for cells in rows.values())
    assert "time: 20 timed steps on this machine; assumed: a training starts in" in text
    assert main(["pretrain", str(tmp_path / "tiny.yaml"), "--dry-run", "--measure"]) == 0
    assert forecast_rows(capsys.readouterr().out)["pretrain"][0] == "1"
    assert not (tmp_path / "runs").exists()
