"""A test split: held out until the end, scored once by the best checkpoint, and shown by tables and comparisons."""

import csv
import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from data.views.batch import Batch
from orchestrator import cli
from orchestrator.commands import console
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError
from orchestrator.feed import stream
from orchestrator.judging.cases import CASES
from orchestrator.judging.validation import Rhythm, Validation
from orchestrator.results.run_cards import judged
from orchestrator.runs import finetune, held_out
from orchestrator.runs.labelled import downstream_of, labelled_samples
from orchestrator.runs.network import NETWORK, build_network
from orchestrator.runs.run import RESULT
from orchestrator.sweeps import sweep as sweeps
from orchestrator.tables import table as tables
from orchestrator.tables.run import run as run_table
from orchestrator.tracking.outbox import posted
from orchestrator.training.loop import World, train
from tests.experiments import UNET, tiny_experiment, tiny_segmentation
from tests.shardsets import SLICES_PER_VOLUME, write_pictures, write_slices

TESTED = ("v008", "v009", "v010")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=8, size=40, num_tested=3)


def tree_of(shards: str, home: Path, **downstream: object) -> dict:
    task = {**tiny_segmentation(shards), "test_split": "test", "evaluate_every_epochs": 0.25, **downstream}
    return tiny_experiment("held", shards, home, 3, UNET, downstream=task, method={"name": "scratch"})


def experiment_of(shards: str, **downstream: object) -> Experiment:
    return resolve(tree_of(shards, Path("runs"), **downstream))


def test_the_test_has_its_own_samples_whole_also_beside_folds_and_fractions(shards: str) -> None:
    for changes in ({}, {"num_folds": 3}, {"label_fraction": 0.5}):
        labelled = labelled_samples(downstream_of(experiment_of(shards, **changes)))
        assert labelled.test is not None
        names = labelled.shards.rows["volume"].take(labelled.test.row_ids).to_pylist()
        assert (set(names), len(names)) == (set(TESTED), 3 * SLICES_PER_VOLUME)
        assert not set(labelled.test.row_ids) & {*labelled.train.row_ids, *labelled.val.row_ids}
    assert labelled_samples(downstream_of(experiment_of(shards, test_split=None))).test is None


def test_a_split_that_is_trained_on_or_chosen_by_is_no_test(shards: str) -> None:
    for split, name in (("train", "train_split"), ("val", "val_split")):
        with pytest.raises(ConfigError, match=rf"test_split '{split}' is {name} too; a test needs samples that"):
            experiment_of(shards, test_split=split)
    folded = labelled_samples(downstream_of(experiment_of(shards, test_split="val", num_folds=3)))
    assert folded.test is not None
    assert folded.test.num_samples == 2 * SLICES_PER_VOLUME


def test_a_test_split_without_samples_is_refused_before_anything_starts(shards: str) -> None:
    with pytest.raises(ValueError, match=r"0 samples with a label map in split 'exam', expected .*test_split"):
        finetune.check(experiment_of(shards, test_split="exam"))


def test_a_score_that_the_test_s_classes_cannot_have_is_refused_before_anything_starts(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", tested=(1, 1))
    task = {"name": "classification", "size": 32, "hidden_dims": (), "score": "auc"}
    with pytest.raises(ValueError, match=r"score auc: it is not defined on these 2 samples"):
        finetune.check(experiment_of(pictures, task=task))
    finetune.check(experiment_of(pictures, task=task, test_split=None))


@pytest.mark.slow
def test_a_dry_run_says_on_how_many_samples_is_tested(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 400)
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree_of(shards, tmp_path / "runs")))
    assert cli.main(["finetune", str(path), "--dry-run"]) == 0
    assert "judged by 12 samples of split val, tested on 18 of split test" in capsys.readouterr().out
    assert cli.main(["finetune", str(path), "--dry-run", "downstream.test_split=null"]) == 0
    assert "tested on" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_network_of_a_checkpoint_is_what_is_scored(shards: str, tmp_path: Path) -> None:
    experiment = experiment_of(shards)
    labelled = finetune.check(experiment)
    plan = finetune.plan_of(experiment, labelled)
    feed_plan = finetune.feed_of(experiment, labelled, plan)

    def batches(first_step: int) -> Iterator[Batch]:
        return stream.local_batches(feed_plan, rank=0)

    def report(metrics: dict, checkpoint: Path | None = None) -> None:
        if checkpoint is not None:
            (tmp_path / NETWORK).write_bytes((checkpoint / NETWORK).read_bytes())

    train(finetune.build_trainee(experiment, None), plan, batches, World(), report)
    found = held_out._score(experiment, str(tmp_path))
    assert labelled.test is not None
    network = build_network(experiment, labelled.shards, None).eval()
    validation = Validation(labelled.shards, labelled.test.row_ids, Rhythm(Fraction(plan.total_steps), 1))
    assert validation.run(network, World()) != found.metrics, "the initial weights score otherwise"
    network.network.load_state_dict(load_file(tmp_path / NETWORK))
    assert validation.run(network, World()) == found.metrics
    assert set(found.cases["case"]) == set(TESTED)


def test_scores_that_mlflow_knows_are_the_best_and_those_of_the_test() -> None:
    logged = {"loss": 0.1, "best/score": 0.8, "test/score": 0.7, "score": 0.2}
    assert judged(logged) == {"score": 0.8, "test/score": 0.7}
    assert judged({"loss": 0.1}) == {"loss": 0.1}


def write_table(folder: Path, shards: str, **downstream: object) -> Path:
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree_of(shards, folder / "runs", **downstream)))
    table = {
        "name": "held-out",
        "title": "Held out",
        "experiment": "experiment.yaml",
        "reference": "scratch",
        "metric": "test/score",
        "also": ["score", "test/dice/liver"],
        "rows": [{"name": "scratch", "pretrain_seeds": []}],
    }
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(table))
    return path


def test_a_table_of_test_scores_without_a_test_is_refused_before_anything_runs(shards: str, tmp_path: Path) -> None:
    table = tables.load(write_table(tmp_path, shards, test_split=None))
    with pytest.raises(
        ValueError, match=r"row scratch: metric 'test/score': nothing is tested; set downstream.test_split"
    ):
        tables.check(table)
    tables.check(tables.load(write_table(tmp_path, shards)))


def write_sweep(folder: Path, shards: str, **downstream: object) -> Path:
    """Write a sweep with the one point that the table has, judged by its test."""
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree_of(shards, folder / "runs", **downstream)))
    sweep = {
        "name": "held-out",
        "title": "Held out",
        "experiment": "experiment.yaml",
        "objective": {"metric": "test/score"},
        "search": {"name": "grid"},
        "scheduler": {"name": "hyperband", "grace": 1},
        "space": {"downstream.seed": {"choice": [0]}},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def test_a_sweep_for_test_scores_wants_high_ones_and_is_refused_without_a_test(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metric 'test/score': nothing is tested; set downstream.test_split"):
        sweeps.check(sweeps.load(write_sweep(tmp_path, shards, test_split=None)))
    sweep = sweeps.load(write_sweep(tmp_path, shards))
    assert sweeps.check(sweep) == [{"downstream.seed": 0}]
    assert sweep.config.objective.mode == "max"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fine_tuning_is_tested_once_at_its_end_and_a_table_a_sweep_and_a_comparison_show_it(
    shards: str,
    tmp_path: Path,
    ray_cluster: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tables.load(write_table(tmp_path, shards))
    (line,) = run_table(table, lambda text: None)
    assert line.failures == ()
    (run,) = (tmp_path / "runs" / "held").glob("finetune-*")
    scores = json.loads((run / RESULT).read_text())["scores"]
    assert line.summary.values == (scores["test/score"],)
    assert line.also["score"].values == (scores["score"],)
    assert line.also["test/dice/liver"].values == (scores["test/dice/liver"],)
    cases = pd.read_parquet(run / CASES)
    assert list(cases["split"].unique()) == ["validation", "test"]
    for split, metric in (("validation", "score"), ("test", "test/score")):
        own = cases[cases["split"] == split]
        assert own.groupby("label")["dice"].mean().mean() == pytest.approx(scores[metric])
    assert set(cases.loc[cases["split"] == "test", "case"]) == set(TESTED)
    summaries: dict[str, float] = {}
    for post in posted(run, ("summary",)):
        summaries |= post["values"]
    assert summaries["test/score"] == scores["test/score"]
    assert summaries["best/score"] == scores["score"]
    assert "best/test/score" not in summaries
    assert CASES in {Path(post["path"]).name for post in posted(run, ("artifact",))}
    # The network in the run's folder is the best checkpoint's, and it is what was tested.
    experiment = table.experiments[0][1]
    assert held_out._score(experiment, str(run / "network")).metrics["score"] == pytest.approx(scores["test/score"])

    # Neither the sweep nor the table trains or tests anew.
    (standing,) = sweeps.run(sweeps.load(write_sweep(tmp_path, shards)), lambda text: None)
    assert (standing.state, standing.value, standing.run) == ("done", scores["test/score"], run.name)
    assert [path.name for path in (tmp_path / "runs" / "held").glob("finetune-*")] == [run.name]
    monkeypatch.setattr(finetune, "score_held_out", None)
    assert run_table(table, lambda text: None)[0].summary.values == line.summary.values
    with (table.folder / "table.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["test/score"] == str(scores["test/score"])
    capsys.readouterr()
    assert cli.main(["compare", str(table.folder), "--metric", "test/score"]) == 0
    assert re.search(rf"test/score.*\n(.*\n)*.*{scores['test/score']:.3f}", capsys.readouterr().out)
