"""Comparisons of runs, written as trainings write them: rows, notes on runs that must not be compared, files."""

import csv
import io
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from data.shards.index import ShardSet
from orchestrator import cli
from orchestrator.cluster import connection
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.history import HistoryWriter
from orchestrator.results.compare import ComparisonResult, Request, compare, log, page, write
from orchestrator.results.comparison import comma_separated
from orchestrator.results.run_cards import Folders
from orchestrator.results.selection import in_folders
from orchestrator.results.server_cards import on_server
from orchestrator.results.statistics import confidence_interval, summarise, welch
from orchestrator.runs import finetune, pretrain
from orchestrator.runs.pretrain import PretrainingResult
from orchestrator.runs.run import Run
from orchestrator.stop import RunError, StoppedError
from orchestrator.sweeps.settings import Objective
from orchestrator.sweeps.study import Ending
from orchestrator.sweeps.trial import Trial, closed, opened
from orchestrator.tables.grid import TableConfig
from orchestrator.tables.outcome import Outcome
from orchestrator.tables.text import comma_separated as table_csv
from orchestrator.tables.trials import trials_of
from orchestrator.tracking.outbox import located, posted
from orchestrator.tracking.tracker import Tracker
from tests.shardsets import write_slices

SCRATCH, BOUNDED = (0.50, 0.52, 0.55), (0.60, 0.63, 0.67)
END = "finished"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=4, size=40)


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("others"), num_patients=4, size=40, seed=1)


@dataclass
class Runs:
    """Writes the folders of trainings that were never run."""

    home: Path
    shards: str

    def experiment(self, **changes: Any) -> Experiment:
        tree = {
            "name": "tiny",
            "home": str(self.home),
            "data": {"shards": self.shards},
            "encoder": {"name": "unet", "spatial_dims": 2, "in_channels": 1, "features": [4, 4, 8, 8, 8, 4]},
            "method": {"name": "simsiam", "crops": {"size": [32, 32], "iou": [0.3, 0.6]}},
            "optimiser": {"lr": 0.05},
            "budget": {"steps": 100, "batch_size": 8},
            "downstream": {
                "shards": self.shards,
                "task": {"name": "segmentation", "crop_size": [32, 32]},
                "optimiser": {"lr": 0.01},
                "budget": {"steps": 4, "batch_size": 12},
            },
        }
        return resolve(tree, [f"{name}={json.dumps(value)}" for name, value in changes.items()])

    def pretrained(
        self, experiment: Experiment, parent: Path | None = None, row: str | None = None, loss: float = -0.5
    ) -> PretrainingResult:
        shards = ShardSet.open(experiment.data.shards)
        key = experiment.pretrain_key(shards.digest)
        run = Run(self.home / experiment.name / f"pretrain-{key}", experiment, "pretrain", key, parent)
        with run.opened(pretrain._caption(experiment, row), [shards], pretrain._params(experiment)):
            steps = [{"step": step, "loss": loss, "collapse": step / 100} for step in range(100)]
            HistoryWriter(run.folder, "pretrain").after_report(None, [{"history": steps}], None)
            run.finish({"encoder": "encoder"}, {}, [])
        return PretrainingResult(run.folder, key, "encoder")

    def finetuned(
        self,
        experiment: Experiment,
        score: float,
        start: PretrainingResult | None = None,
        parent: Path | None = None,
        row: str | None = None,
        ends: str = END,
    ) -> Run:
        """Write a fine-tuning whose best of two validations is ``score``; ``ends`` says how it came to its end."""
        task = finetune.downstream_of(experiment)
        shards = ShardSet.open(task.shards)
        key = experiment.finetune_key(start.key if start else "scratch", shards.digest)
        parent = parent or (start.folder if start else None)
        run = Run(self.home / experiment.name / f"finetune-{key}", experiment, "finetune", key, parent)
        caption, params = finetune._caption(experiment, start, row), finetune._params(experiment, start)
        writer = HistoryWriter(run.folder, "finetune")
        try:
            with run.opened(caption, [shards], params):
                scores = {"score": score, "dice_mean": score, "dice/liver": score / 2}
                steps = [{"step": 1, "score": score / 2}, {"step": 3, **scores, "judged": list(scores)}]
                writer.after_report(None, [{"history": steps}], None)
                if ends == "failed":
                    writer.after_report(None, [{"fatal": "loss is nan at step 4"}], None)
                    raise RunError("loss is nan at step 4")
                if ends == "stopped":
                    raise StoppedError("stopped after step 4 of 8")
                if ends == "killed":
                    raise SystemExit
                run.finish({"scores": {**scores, "best_step": 4}}, {**scores, "best_step": 4}, [])
        except (RunError, StoppedError, SystemExit):
            pass
        return run

    def rows(self, repeats: int = 3) -> None:
        """Write ``scratch`` and a pretrained row, each with its own pretraining."""
        for seed in range(repeats):
            plain = self.experiment(**{"method": {"name": "scratch"}, "downstream.seed": seed})
            self.finetuned(plain, SCRATCH[seed], row="scratch")
            bounded = self.experiment(**{"seed": seed, "downstream.seed": seed})
            start = self.pretrained(bounded, row="[0.3, 0.6]")
            self.finetuned(bounded, BOUNDED[seed], start, row="[0.3, 0.6]")

    def grouped(self, name: str, kind: str, title: str) -> Path:
        """Write the run that a table's or a sweep's runs are children of."""
        folder = self.home / "tiny" / name
        tracker = Tracker(folder, str(self.home))
        tracker.start("tiny", title, name, {"kind": kind})
        tracker.finish("FINISHED")
        return folder

    def compare(self, *folders: Path, **request: Any) -> ComparisonResult:
        return compare(in_folders(folders, self.home), Request(**request))


@pytest.fixture
def runs(tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(connection, "hardware", lambda: {"nodes": "1"})  # asks Ray, which these tests do without
    monkeypatch.setattr(Tracker, "_send", lambda self: [])
    return Runs(tmp_path / "runs", shards)


def names(compared: ComparisonResult) -> list[str]:
    return [line.name for line in compared.lines]


def notes(compared: ComparisonResult) -> list[str]:
    """Return the notes on facts, without those that explain the numbers."""
    explained = re.compile(r"p: |so many runs|no row is best|.* is better than each other row")
    return [note for note in compared.text[3][1:] if not explained.match(note)]


@pytest.mark.slow
def test_rows_of_a_table_are_tested_against_scratch_with_intervals_over_their_seeds(runs: Runs) -> None:
    runs.rows()
    compared = runs.compare()
    scratch, bounded = compared.lines
    assert names(compared) == ["scratch", "[0.3, 0.6]"]
    assert (scratch.summary, bounded.summary) == (summarise(SCRATCH), summarise(BOUNDED))
    assert bounded.comparison == replace(welch(BOUNDED, SCRATCH), corrected=welch(BOUNDED, SCRATCH).p)
    assert (scratch.interval, scratch.comparison) == (confidence_interval(summarise(SCRATCH)), None)
    heading, cells = compared.text[1:3]
    assert heading == ["row", "score", "95 % interval", "n", "runs", "difference", "p against scratch"]
    assert cells[1][:5] == ["[0.3, 0.6]", "0.633 ± 0.035", "0.546 to 0.721", "3", "0.600  0.630  0.670"]
    assert cells[1][6] == f"{welch(BOUNDED, SCRATCH).p:.3f}"
    assert notes(compared) == []


@pytest.mark.slow
def test_runs_of_no_table_are_named_by_the_fields_that_differ_but_for_seeds(runs: Runs) -> None:
    for seed in (0, 1):
        for iou, lr in (([0.3, 0.6], 0.05), ([0.0, 1.0], 0.05), ([0.0, 1.0], 0.1)):
            experiment = runs.experiment(**{"seed": seed, "method.crops.iou": iou, "optimiser.lr": lr})
            runs.finetuned(experiment, 0.5 + seed / 10, runs.pretrained(experiment))
        runs.finetuned(runs.experiment(**{"method": {"name": "scratch"}, "downstream.seed": seed}), 0.4)
    compared = runs.compare()
    assert names(compared) == [
        "scratch",
        "simsiam, iou [0.0, 1.0], lr 0.05",
        "simsiam, iou [0.0, 1.0], lr 0.1",
        "simsiam, iou [0.3, 0.6], lr 0.05",
    ]
    assert [line.summary.num_values for line in compared.lines] == [2, 2, 2, 2]


def test_what_only_a_pretraining_would_notice_does_not_part_runs_from_scratch(runs: Runs) -> None:
    for seed, steps in ((0, 100), (1, 200)):
        changes = {"method": {"name": "scratch"}, "downstream.seed": seed, "budget.steps": steps}
        runs.finetuned(runs.experiment(**changes), SCRATCH[seed])
    assert [line.summary.values for line in runs.compare().lines] == [SCRATCH[:2]]


def test_two_tables_rows_of_one_name_are_told_apart_by_what_differs(runs: Runs) -> None:
    for steps in (100, 200):
        experiment = runs.experiment(**{"budget.steps": steps})
        runs.finetuned(experiment, 0.5, runs.pretrained(experiment), row="long")
    assert names(runs.compare()) == ["long, steps 100", "long, steps 200"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("failed", "1 run failed, not counted: loss is nan at step 4"),
        ("stopped", "1 run stopped, not counted"),
        ("killed", "1 run stopped, not counted"),
    ],
)
def test_a_run_without_a_result_is_not_counted_but_said(runs: Runs, ends: str, said: str) -> None:
    runs.rows()
    experiment = runs.experiment(**{"method": {"name": "scratch"}, "downstream.seed": 9})
    runs.finetuned(experiment, 0.9, row="scratch", ends=ends)
    compared = runs.compare()
    assert compared.lines[0].summary.values == SCRATCH
    assert notes(compared) == [f"scratch: {said}"]


def test_a_run_that_still_runs_or_was_killed_without_a_word_is_unfinished(runs: Runs) -> None:
    runs.rows()
    Tracker(next((runs.home / "tiny").glob("finetune-*")), "").start("tiny", "again", "key", {"kind": "finetune"})
    tracker = Tracker(runs.home / "tiny" / "finetune-0", "")
    tracker.start("tiny", "finetune scratch", "0", {"kind": "finetune", "row": "young"})
    tracker.params({"pretrained": "scratch"})
    compared = runs.compare()
    assert "young: 1 run unfinished, not counted" in notes(compared)
    assert [line.summary.num_values for line in compared.lines] == [3, 3, 0]


@pytest.mark.slow
def test_runs_judged_on_another_dataset_get_no_p_and_a_word(runs: Runs, other_shards: str) -> None:
    runs.rows()
    for seed in (0, 1):
        changes = {"method": {"name": "scratch"}, "downstream.seed": seed, "downstream.shards": other_shards}
        runs.finetuned(runs.experiment(**changes), 0.9, row="elsewhere")
    compared = runs.compare(reference="scratch")
    digests = [ShardSet.open(uri).digest[:8] for uri in (runs.shards, other_shards)]
    assert notes(compared) == [
        f"not comparable: the rows differ in dataset (scratch: {digests[0]}; [0.3, 0.6]: {digests[0]}; "
        f"elsewhere: {digests[1]})",
        "elsewhere: no p: judged by another dataset",
    ]


@pytest.mark.slow
def test_another_label_fraction_is_no_equal_start(runs: Runs) -> None:
    runs.rows()
    changes = {"method": {"name": "scratch"}, "downstream.label_fraction": 0.5}
    runs.finetuned(runs.experiment(**changes), 0.4, row="half")
    compared = runs.compare()
    assert notes(compared)[0] == (
        "not on equal terms: the rows differ in label_fraction (scratch: 1.0; [0.3, 0.6]: 1.0; half: 0.5)"
    )
    assert notes(compared)[1] == "half: no p: needs 2 runs in each row; there are 1 and 3"


def test_runs_of_one_pretraining_are_said_not_to_be_independent(runs: Runs) -> None:
    start = runs.pretrained(runs.experiment())
    for seed in (0, 1):
        runs.finetuned(runs.experiment(**{"downstream.seed": seed}), BOUNDED[seed], start)
    assert notes(runs.compare()) == [
        "simsiam: 2 runs share 1 pretraining, so they are not independent: interval and p are too small"
    ]


def test_runs_can_be_put_together_by_a_field_and_what_is_pooled_is_said(runs: Runs) -> None:
    for iou, steps, score in (([0.3, 0.6], 100, 0.6), ([0.3, 0.6], 200, 0.7), ([0.0, 1.0], 100, 0.5)):
        experiment = runs.experiment(**{"method.crops.iou": iou, "budget.steps": steps})
        runs.finetuned(experiment, score, runs.pretrained(experiment))
    compared = runs.compare(by=("method.crops.iou",), reference="iou [0.0, 1.0]")
    assert [(line.name, sorted(line.summary.values)) for line in compared.lines] == [
        ("iou [0.0, 1.0]", [0.5]),
        ("iou [0.3, 0.6]", [0.6, 0.7]),
    ]
    assert "iou [0.3, 0.6]: pools runs that differ in steps" in notes(compared)


def test_pretrainings_are_compared_by_their_last_hundredth_but_never_by_losses_of_two_methods(runs: Runs) -> None:
    runs.pretrained(runs.experiment())
    runs.pretrained(runs.experiment(**{"method": {"name": "voco"}}), loss=2.5)
    compared = runs.compare(kind="pretrain")
    assert (compared.asked.metric, [line.summary.values for line in compared.lines]) == (
        "collapse",
        [(0.99,), (0.99,)],
    )
    losses = runs.compare(kind="pretrain", metric="loss", reference="simsiam")
    assert {line.name: line.summary.mean for line in losses.lines} == {"simsiam": -0.5, "voco": 2.5}
    assert notes(losses) == [
        "not comparable: the rows differ in method.name (simsiam: simsiam; voco: voco)",
        "voco: no p: judged by another method.name",
    ]


def test_a_table_s_folder_stands_for_all_of_its_rows_even_for_runs_that_another_table_began(runs: Runs) -> None:
    first = runs.grouped("table-first", "table", "First")
    second = runs.grouped("table-second", "table", "Second")
    begun = runs.finetuned(
        runs.experiment(**{"method": {"name": "scratch"}}), 0.5, parent=first, row="nothing before"
    )
    runs.finetuned(runs.experiment(**{"method": {"name": "scratch"}, "downstream.seed": 7}), 0.1, parent=first)
    rows = [{"name": "scratch", "pretrain_seeds": []}]
    asked = TableConfig.model_validate(
        {"name": "second", "title": "Second", "experiment": "e.yaml", "reference": "scratch", "rows": rows}
    )
    (second / "table.csv").write_text(table_csv(asked, [Outcome(trials_of(asked)[0], 0.5, run=begun.folder.name)]))
    compared = runs.compare(second)
    assert [(line.name, line.summary.values) for line in compared.lines] == [("scratch", (0.5,))]
    assert compared.title == "Second: score of 1 fine-tunings"
    assert len(runs.compare(first).lines[0].row.cards) + len(runs.compare(first).lines[1:]) == 2


@pytest.mark.slow
def test_a_sweep_s_folder_stands_for_its_trials_pruned_ones_named(runs: Runs) -> None:
    sweep = runs.grouped("sweep-iou-12ab", "sweep", "IoU")
    for number, (low, ending) in enumerate([(0.1, Ending("done", 0.7)), (0.2, Ending("pruned", 0.3))]):
        experiment = runs.experiment(**{"method.crops.iou": [low, 0.6]})
        trial = Trial(
            number=number,
            point={"method.crops.iou": [low, 0.6]},
            experiment=experiment,
            objective=Objective(metric="dice_mean"),
            folder=sweep / "trials" / f"{number:03d}",
            label=f"iou {low}-0.6",
            params={"method.crops.iou.low": low, "method.crops.iou.high": 0.6},
        )
        tracker = opened(trial)
        tracker.metrics([{"step": step, "dice_mean": 0.1 * step} for step in (1, 3)])
        start = runs.pretrained(experiment, trial.folder)
        runs.finetuned(experiment, 0.7, start, ends=END if ending.state == "done" else "stopped")
        closed(trial, tracker, ending)
    compared = runs.compare(sweep)
    rows = [(line.name.rpartition("iou ")[2], line.summary.values) for line in compared.lines]
    assert rows == [("0.1-0.6", (0.7,)), ("0.2-0.6", ())]
    assert compared.asked.metric == "dice_mean"
    assert notes(compared)[0].endswith("0.2-0.6: 1 run pruned, not counted")
    x, y = compared.choice.source.curve(compared.lines[1].row.cards[0], "dice_mean")
    assert (x, y) == ([2.0, 4.0], pytest.approx([0.1, 0.3]))
    assert compared.text[3][0].startswith("dice_mean as the sweep judges it; mean")
    drawn = runs.compare(sweep, curves=("collapse",))
    assert "curve-collapse.png" in [file.name for file in write(drawn, drawn.folder)]
    trainings = runs.compare(sweep, kind="finetune")
    assert [line.name.rpartition("iou ")[2] for line in trainings.lines] == ["0.1-0.6", "0.2-0.6"]
    assert notes(trainings)[0].endswith("1 run pruned, not counted")


def test_steps_that_a_resumed_run_trained_again_count_once(runs: Runs) -> None:
    run = runs.finetuned(runs.experiment(), 0.8)
    again = [{"step": 1, "score": 0.45}, {"step": 3, "score": 0.9}]
    HistoryWriter(run.folder, "finetune").after_report(None, [{"history": again}], None)
    source = Folders([runs.home])
    (card,) = source.cards()
    assert source.curve(card, "score") == ([2.0, 4.0], [0.4, 0.8])


def test_a_copied_home_knows_its_runs_parents(runs: Runs) -> None:
    table = runs.grouped("table-first", "table", "First")
    runs.finetuned(runs.experiment(), 0.5, runs.pretrained(runs.experiment(), table), row="a")
    moved = runs.home.parent / "from-the-cluster"
    shutil.move(runs.home, moved)
    cards = {card.kind: card for card in Folders([moved]).cards()}
    assert cards["finetune"].parents == (cards["pretrain"].place, str(moved / "tiny" / "table-first"))


def test_the_csv_has_every_run_with_the_fields_that_differ_and_all_digits(runs: Runs) -> None:
    runs.rows(repeats=1)
    runs.finetuned(runs.experiment(**{"downstream.seed": 4}), 0.1, row="scratch", ends="failed")
    compared = runs.compare(also=("dice/liver",))
    rows = list(csv.DictReader(io.StringIO(comma_separated(compared.asked, compared.lines, compared.scores))))
    by_status = {(row["row"], row["status"]): row for row in rows}
    done = by_status["[0.3, 0.6]", "finished"]
    assert (done["score"], done["dice/liver"], done["downstream.seed"]) == ("0.6", "0.3", "0")
    assert done["method.crops.iou"] == "[0.3, 0.6]"
    assert by_status["scratch", "finished"]["method.crops.iou"] == ""
    assert by_status["scratch", "failed"]["remark"] == "loss is nan at step 4"


def test_folds_are_one_repeat_which_counts_where_none_is_missing(runs: Runs) -> None:
    plain = {"method": {"name": "scratch"}, "downstream.num_folds": 3}
    for seed, fold, score in (
        (0, 0, 0.3),
        (0, 1, 0.6),
        (0, 2, 0.9),
        (1, 0, 0.4),
        (1, 1, 0.4),
        (1, 2, 0.4),
        (2, 0, 0.9),
    ):
        runs.finetuned(runs.experiment(**plain, **{"downstream.seed": seed, "downstream.fold": fold}), score, row="a")
    compared = runs.compare(also=("dice/liver",))
    (line,) = compared.lines
    assert line.summary.values == pytest.approx((0.6, 0.4))
    assert line.also["dice/liver"].values == pytest.approx((0.3, 0.2))
    assert len(line.scored) == 6
    assert notes(compared)[:1] == ["a run is the mean over 3 folds"]
    left_out = "1 run finished without this metric, or without the other folds of its repeat, not counted"
    assert any(note.endswith(left_out) for note in notes(compared))


@pytest.mark.slow
def test_files_are_written_beside_the_runs_and_logged_to_the_table_that_all_belong_to(runs: Runs) -> None:
    table = runs.grouped("table-first", "table", "First")
    for seed in (0, 1):
        experiment = runs.experiment(seed=seed)
        runs.finetuned(experiment, 0.5 + seed / 10, runs.pretrained(experiment, table), row="a")
    compared = runs.compare(curves=("collapse",))
    files = write(compared, compared.folder)
    assert [file.name for file in files] == [
        "comparison.md", "comparison.csv", "statistics.csv", "scores.png", "learning.png", "curve-collapse.png",
    ]  # fmt: skip
    assert compared.folder.parent == runs.home / "tiny"
    assert files[0].read_text().startswith("# tiny: score of 2 fine-tunings\n\n| row | score | 95 % interval |")
    assert log(compared, files) == "among the artifacts of 'First'"
    assert [located(table, line["path"]) for line in posted(table, ("artifact",))] == files
    alone = runs.finetuned(runs.experiment(**{"downstream.seed": 3}), 0.4)
    assert log(runs.compare(alone.folder), files) == "not logged: the runs belong to no single table or sweep"


def test_comparisons_of_other_folders_or_by_other_requests_have_folders_of_their_own(runs: Runs) -> None:
    first = runs.finetuned(runs.experiment(**{"downstream.seed": 1}), 0.4)
    second = runs.finetuned(runs.experiment(**{"downstream.seed": 2}), 0.5)
    compared = [
        runs.compare(), runs.compare(metric="dice_mean"), runs.compare(first.folder), runs.compare(second.folder)
    ]  # fmt: skip
    assert len({one.folder for one in compared}) == 4
    assert runs.compare(first.folder).folder == compared[2].folder
    both = in_folders([first.folder, second.folder], runs.home), in_folders([second.folder, first.folder], runs.home)
    assert len({compare(choice, Request()).folder for choice in both}) == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"metric": "dice"}, r"--metric dice: not one of the scores of these runs; they are: best_step, dice/liver,"),
        ({"names": ("voco*",)}, r"tiny: no finetune run named voco\*; there are: \[0.3, 0.6\], scratch"),
        ({"kind": "trial"}, r"tiny: no trial run; there are: runs of kind finetune and pretrain"),
        ({"reference": "b"}, r"--reference b: not one of the rows; they are: \[0.3, 0.6\], scratch"),
        ({"by": ("method.crop.iou",)}, r"--by method.crop.iou: no run has this field; near it are: method.crops.iou"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_there_is(
    runs: Runs, request_: dict[str, Any], message: str
) -> None:
    runs.rows(repeats=1)
    with pytest.raises(ValueError, match=message):
        runs.compare(**request_)


def test_a_home_without_runs_and_an_unknown_experiment_are_refused(runs: Runs) -> None:
    with pytest.raises(ValueError, match=r"--home .*runs: no runs there; give the folder that runs were written to"):
        runs.compare()
    runs.rows(repeats=1)
    with pytest.raises(ValueError, match=r"--experiment big: no such experiment in .*; there are: tiny"):
        in_folders([], runs.home, "big")
    with pytest.raises(ValueError, match=r"nowhere: no runs there; give a folder that a run"):
        runs.compare(runs.home / "nowhere")
    runs.finetuned(runs.experiment(name="huge"), 0.5)
    with pytest.raises(ValueError, match=r"holds 2 experiments; name one with --experiment: huge, tiny"):
        runs.compare()


@pytest.mark.slow
def test_the_command_prints_the_table_and_where_its_files_are(runs: Runs, capsys: pytest.CaptureFixture) -> None:
    runs.rows()
    given = ["--home", str(runs.home), "--metric", "best/dice_mean", "--also", "dice/liver", "--name", "*0.*"]
    assert cli.main(["compare", *given, "--out", str(runs.home / "out")]) == 0
    printed = capsys.readouterr().out
    for part in ("dice_mean of 3", "[0.3,", "0.633", str(runs.home / "out" / "comparison.md"), "MLflow: not logged"):
        assert part in printed
    assert cli.main(["compare", "--home", str(runs.home), "--out", str(runs.home / "out")]) == 2
    assert "holds something else (names: found ['*0.*'], asked for []; metric: found" in capsys.readouterr().err
    assert cli.main(["compare", "--home", str(runs.home), "--metric", "dice"]) == 2
    assert "compare: --metric dice: not one of the scores" in capsys.readouterr().err


@pytest.mark.slow
def test_an_mlflow_server_tells_the_same_as_the_folders(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = runs.grouped("table-first", "table", "First")
    start = runs.pretrained(runs.experiment(), table, row="a")
    runs.finetuned(runs.experiment(), 0.6, start, row="a")
    runs.finetuned(runs.experiment(**{"downstream.seed": 5}), 0.7, parent=table, row="b", ends="failed")
    monkeypatch.undo()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tell(uri, [table, start.folder, *sorted((runs.home / "tiny").glob("finetune-*"))])
    near, far = runs.compare(curves=("collapse",)), compare(on_server(uri, "tiny", tmp_path), Request())
    assert [(line.name, line.summary, line.interval) for line in far.lines] == [
        (line.name, line.summary, line.interval) for line in near.lines
    ]
    assert [card.status for line in far.lines for card in line.row.cards] == ["finished", "failed"]
    (finished,) = MlflowClient(uri).search_runs([_experiment_id(uri)], "tags.kind = 'finetune' and tags.row = 'a'")
    found = page(far)
    assert found is not None
    address, key = found.address.split("&viewStateShareKey=")
    assert address.endswith(
        f"/#/experiments/{_experiment_id(uri)}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    )
    view = json.loads(MlflowClient(uri).get_experiment_by_name("tiny").tags[f"mlflow.sharedViewState.{key}"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`best/score`", False)
    assert finished.info.run_id in view["searchFilter"]
    listed = MlflowClient(uri).search_runs(
        [_experiment_id(uri)], view["searchFilter"], order_by=["metrics.`best/score` DESC"]
    )
    assert [run.data.tags["row"] for run in listed] == ["a", "b"]
    assert found.home == tmp_path
    assert [chart["selectedParams"] for chart in view["compareRunCharts"] if chart["type"] == "PARALLEL"] == [
        ["downstream.seed"]
    ]
    lower = page(compare(on_server(uri, "tiny", tmp_path), Request(kind="pretrain")))
    view = json.loads(
        MlflowClient(uri)
        .get_experiment_by_name("tiny")
        .tags[f"mlflow.sharedViewState.{lower.address.rpartition('=')[2]}"]
    )
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`collapse`", True)
    files = write(far, far.folder)
    assert log(far, files) == "among the artifacts of 'First'"
    (run,) = MlflowClient(uri).search_runs([_experiment_id(uri)], "tags.kind = 'table'")
    logged = MlflowClient(uri).list_artifacts(run.info.run_id, far.folder.name)
    assert sorted(Path(file.path).name for file in logged) == sorted(file.name for file in files)


def tell(uri: str, folders: Sequence[Path]) -> None:
    for folder in folders:
        assert Tracker(folder, uri).flush(force=True) is None


def _experiment_id(uri: str) -> str:
    found = MlflowClient(uri).get_experiment_by_name("tiny")
    assert found is not None
    return found.experiment_id
