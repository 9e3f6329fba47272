"""Values from lists: which trials they take, which value a row keeps, and what is refused."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.config.refusal import ConfigError
from orchestrator.history import HISTORY
from orchestrator.runs import finetune
from orchestrator.runs.finetune import FinetuningResult
from orchestrator.stop import RunError
from orchestrator.sweeps import forecast
from orchestrator.tables import run as runs
from orchestrator.tables import table as tables
from orchestrator.tables.choice import Contender, choose, settings_of, shortly, worded
from orchestrator.tables.grid import TableConfig
from orchestrator.tables.job import EndedTrial
from orchestrator.tables.outcome import Outcome, aggregate, is_needed
from orchestrator.tables.results import Results
from orchestrator.tables.text import cells, comma_separated, markdown, notes
from orchestrator.tables.trials import TableTrial, expected, trials_of
from orchestrator.tracking.outbox import posted
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.tables.test_table import SCRATCH, write_table
from tests.shardsets import write_slices

LR = "downstream.optimiser.lr"
BATCH = "downstream.budget.batch_size"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=8, size=40, num_tested=1)


def table_of(**changes: Any) -> TableConfig:
    given = {
        "name": "t",
        "title": "Two rows",
        "experiment": "e.yaml",
        "reference": "a",
        "metric": "test/iou_mean",
        "finetune_seeds": [1, 2],
        "rows": [{"name": "a", "pretrain_seeds": []}, {"name": "b"}],
        "choose": {LR: [0.1, 0.01]},
    }
    return TableConfig.model_validate({**given, **changes})


def outcomes_of(config: TableConfig, score: Callable[[TableTrial], float | None]) -> list[Outcome]:
    """End each trial with a validation score; its own value is 0.1 less, so that the two are told apart."""
    ended = []
    for trial in trials_of(config):
        found = score(trial)
        failed = Outcome(trial, None, "loss is nan")
        ended.append(
            failed if found is None else Outcome(trial, found - 0.1, validation=found, validated_on="split val")
        )
    return ended


def by_lr(large: float, small: float) -> Callable[[TableTrial], float]:
    """Score by the learning rate and a little by the seed."""
    return lambda trial: (large if trial.tried[LR] == 0.1 else small) + trial.finetune_seed / 100


def test_every_repeat_of_every_row_is_run_with_each_value_and_the_first_repeats_come_first() -> None:
    trials = trials_of(table_of())
    assert [(t.row, t.finetune_seed, t.tried[LR]) for t in trials[:4]] == [
        ("a", 1, 0.1),
        ("b", 1, 0.1),
        ("a", 1, 0.01),
        ("b", 1, 0.01),
    ]
    assert len(trials) == 2 * 2 * 2
    assert trials[2].changes == {LR: 0.01, "downstream.seed": 1}


def test_each_row_keeps_the_value_with_the_best_validation_and_only_its_runs() -> None:
    config = table_of()
    scores = {"a": by_lr(0.5, 0.7), "b": by_lr(0.8, 0.6)}
    a, b = aggregate(config, outcomes_of(config, lambda trial: scores[trial.row](trial)))
    assert a.choice is not None
    assert b.choice is not None
    assert (a.choice.settings, b.choice.settings) == ({LR: 0.01}, {LR: 0.1})
    assert a.summary.values == pytest.approx((0.61, 0.62))
    assert b.summary.values == pytest.approx((0.71, 0.72))
    assert [one.mean for one in a.choice.tried] == pytest.approx([0.515, 0.715])


def test_the_test_s_scores_do_not_choose() -> None:
    config = table_of()
    ended = [
        Outcome(trial, 0.9 if trial.tried[LR] == 0.1 else 0.2, validation=0.3 if trial.tried[LR] == 0.1 else 0.4)
        for trial in trials_of(config)
    ]
    assert config.chosen_by == "iou_mean"
    assert [line.summary.values for line in aggregate(config, ended)] == [(0.2, 0.2)] * 2


def tried(*means: float | None, complete: tuple[int, ...] | None = None) -> list[Contender]:
    counts = complete or (2,) * len(means)
    return [
        Contender({LR: place}, mean, count, 2) for place, (mean, count) in enumerate(zip(means, counts, strict=True))
    ]


@pytest.mark.parametrize(
    ("given", "metric", "place"),
    [
        (tried(0.5, 0.7, 0.6), "score", 1),
        (tried(0.5, 0.7, 0.6), "loss", 0),
        (tried(0.7, 0.7), "score", 0),
        (tried(0.2, 0.2), "loss", 0),
        (tried(0.9, 0.1, complete=(1, 2)), "score", 1),
        (tried(0.1, 0.9, complete=(1, 1)), "score", 1),
        (tried(None, 0.1, complete=(0, 1)), "score", 1),
        (tried(None, None, complete=(0, 0)), "score", None),
    ],
    ids=["highest", "lowest", "tie", "tie of lowest", "incomplete", "none complete", "only one ran", "nothing ran"],
)
def test_the_best_complete_value_is_chosen_and_the_first_of_equals(
    given: list[Contender], metric: str, place: int | None
) -> None:
    settings = None if place is None else {LR: place}
    assert choose(given, metric, "split val").settings == settings


def test_a_value_with_a_failed_run_is_chosen_only_where_no_value_is_complete_and_both_are_said() -> None:
    config = table_of()

    def score(trial: TableTrial) -> float | None:
        if (trial.tried[LR], trial.finetune_seed) == (0.1, 2) or (trial.row, trial.finetune_seed) == ("b", 1):
            return None
        return by_lr(0.9, 0.3)(trial)

    lines = aggregate(config, outcomes_of(config, score))
    assert [line.choice and line.choice.settings for line in lines] == [{LR: 0.01}, {LR: 0.01}]
    assert lines[0].failures == (f"{LR}=0.1: loss is nan",)
    said = notes(config, lines)
    assert (
        f"a: {LR}=0.01 is chosen by iou_mean on split val (lr 0.1: 0.910 over 1 of 2 repeats; lr 0.01: 0.315)" in said
    )
    assert (
        f"b: {LR}=0.01 is chosen by iou_mean on split val, though no value has all of its repeats "
        "(lr 0.1: no score, 0 of 2 repeats; lr 0.01: 0.320 over 1 of 2 repeats)"
    ) in said
    assert f"a: a run failed: {LR}=0.1: loss is nan" in said


def test_the_table_shows_the_choice_the_lists_and_the_losers_scores() -> None:
    config = table_of(rows=[{"name": "a"}, {"name": "b", "choose": {}}], metric="score")
    lines = aggregate(config, outcomes_of(config, lambda t: by_lr(0.5, 0.7)(t) if t.tried else 0.4))
    heading, rows = cells(config, lines)
    assert heading[:3] == ["row", "chosen", "score"]
    assert [row[:2] for row in rows] == [["a", "lr 0.01"], ["b", "-"]]
    text = markdown(config, lines)
    assert (
        "- chosen: for each row the value with the best mean score of its validations, the first of equals; all "
        f"numbers of the row are of the runs with it; {LR} over 0.1, 0.01 (a)\n"
    ) in text
    assert f"- a: {LR}=0.01 is chosen by score on split val (lr 0.1: 0.515; lr 0.01: 0.715)\n" in text
    assert "nothing is chosen yet" in markdown(config, aggregate(config, []))


def test_csv_has_each_trial_s_values_its_validation_and_whether_it_is_chosen() -> None:
    config = table_of()
    rows = list(csv.DictReader(io.StringIO(comma_separated(config, outcomes_of(config, by_lr(0.5, 0.7))))))
    assert list(rows[0])[:6] == ["row", LR, "pretrain_seed", "finetune_seed", "validation iou_mean", "chosen"]
    first = [row for row in rows if (row["row"], row["finetune_seed"]) == ("a", "1")]
    assert [(row[LR], row["validation iou_mean"], row["chosen"]) for row in first] == [
        ("0.1", "0.51", "False"),
        ("0.01", "0.71", "True"),
    ]


def test_several_fields_mean_their_product() -> None:
    fields = {LR: [0.1, 0.01], BATCH: [8, 16]}
    assert [shortly(one) for one in settings_of(fields)] == [
        "lr 0.1, batch_size 8",
        "lr 0.1, batch_size 16",
        "lr 0.01, batch_size 8",
        "lr 0.01, batch_size 16",
    ]
    assert len(trials_of(table_of(choose=fields))) == 2 * 2 * 4


def test_three_batch_sizes_of_two_seeds_are_six_repeats_as_in_jssl() -> None:
    config = table_of(choose={}, repeat_over={BATCH: [8, 16, 32]})
    ended = outcomes_of(config, lambda trial: trial.repeated[BATCH] / 100 + trial.finetune_seed / 1000)
    a = aggregate(config, ended)[0]
    assert a.summary.values == pytest.approx([value - 0.1 for value in (0.081, 0.161, 0.321, 0.082, 0.162, 0.322)])
    assert a.choice is None
    assert notes(config, [a])[0] == f"each value makes a repeat of its own with every seed: {BATCH} over 8, 16, 32"
    rows = list(csv.DictReader(io.StringIO(comma_separated(config, ended))))
    assert [row[BATCH] for row in rows if (row["row"], row["finetune_seed"]) == ("a", "1")] == ["8", "16", "32"]


def test_choosing_and_repeating_go_together_with_folds() -> None:
    config = table_of(repeat_over={BATCH: [8, 16]}, num_folds=3, pretrain_seeds=[4, 5])
    trials = trials_of(config)
    assert sum(trial.row == "b" for trial in trials) == 2 * 2 * 2 * 2 * 3
    assert [trial.fold for trial in trials if trial.row == "b"][:4] == [0, 1, 2, 0]
    ended = outcomes_of(config, by_lr(0.5, 0.7))
    a, b = aggregate(config, ended)
    assert (a.summary.num_values, b.summary.num_values) == (4, 8)
    assert b.choice is not None
    assert b.choice.remark(2).startswith(f"{LR}=0.01 is chosen by iou_mean on the folds held out (")
    last = next(one for one in reversed(ended) if one.trial.row == "a" and one.trial.tried[LR] == 0.01)
    a, _ = aggregate(config, [one for one in ended if one is not last])
    assert a.choice is not None
    assert (a.choice.settings, [one.num_complete for one in a.choice.tried]) == ({LR: 0.1}, [4, 3])


ROWS = {"rows": [{"name": "a"}, {"name": "b", "overrides": {"downstream.optimiser": {"lr": 1}}}]}


@pytest.mark.parametrize("kind", ["choose", "repeat_over"])
@pytest.mark.parametrize(
    ("lists", "rows", "message"),
    [
        ({LR: []}, {}, rf"{LR}: 0 values; give two or more, or leave the field out"),
        ({LR: [0.1, 0.01, 0.1]}, {}, rf"{LR}: 0\.1 is there twice in \[0\.1, 0\.01, 0\.1\]; give each value once"),
        (
            {"downstream.seed": [1, 2]},
            {},
            r"downstream\.seed: the table sets it in every trial; use pretrain_seeds, ",
        ),
        ({LR: [1, 2], "downstream.optimiser": [{"lr": 3}]}, {}, r"optimiser: it is a part of .*lr, or holds it"),
        (
            {LR: [0.1, 0.01]},
            ROWS,
            rf"row b: KIND\.{LR}: the row overrides {LR} itself; remove that, or .* KIND: {{}}",
        ),
    ],
    ids=["empty", "repeated", "seed", "nested", "overridden"],
)
def test_lists_that_cannot_be_meant_are_refused(
    kind: str, lists: dict[str, Any], rows: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message.replace("KIND", kind)):
        table_of(**{"choose": {}, kind: lists, **rows})


def test_a_field_under_both_and_a_metric_without_a_direction_are_refused() -> None:
    with pytest.raises(
        ValidationError, match=rf"choose\.{LR} beside repeat_over\.{LR}: list it under one of the two"
    ):
        table_of(repeat_over={LR: [1, 2]})
    with pytest.raises(ValidationError, match=r"unknown whether higher or lower values of metric 'best_step'"):
        table_of(metric="best_step")
    missing = {"name": "b", "missing": "not built", "paper": {"mean": 1}, "choose": {}}
    with pytest.raises(ValidationError, match=r"row b: choose beside missing"):
        table_of(rows=[{"name": "a"}, missing])


def test_a_row_may_have_lists_of_its_own_or_none() -> None:
    rows = [{"name": "a", "choose": {}}, {"name": "b", "choose": {LR: [1, 2, 3]}, "repeat_over": {BATCH: [4, 8]}}]
    trials = trials_of(table_of(rows=rows))
    assert [len([trial for trial in trials if trial.row == row]) for row in ("a", "b")] == [2, 2 * 3 * 2]


def test_a_cohort_drops_or_replaces_the_lists_of_all_rows() -> None:
    config = table_of(rows=[{"name": "a"}, {"name": "b", "choose": {LR: [1, 2, 3]}}, {"name": "c", "choose": {}}])
    kept = config.on_cohort("phantom", {})
    assert [len(settings_of(kept.lists(row)[0])) for row in kept.rows] == [2, 3, 1]
    dropped = config.on_cohort("phantom", {}, lists={"choose": {}})
    assert [settings_of(dropped.lists(row)[0]) for row in dropped.rows] == [[{}]] * 3
    other = config.on_cohort("phantom", {}, lists={"choose": {LR: (5, 6)}, "repeat_over": {BATCH: (2,)}})
    assert [len(settings_of(other.lists(row)[0])) for row in other.rows] == [2, 2, 1]
    with pytest.raises(ValueError, match=rf"row a: choose\.{LR}: the row overrides {LR} itself"):
        config.on_cohort("phantom", {"a": {LR: 1}})


def test_the_shards_of_a_list_are_those_of_the_cohort_too() -> None:
    config = table_of(choose={"downstream.shards": ["x", "y"]}).on_cohort(
        "phantom", {}, lambda shards: f"small/{shards}"
    )
    assert config.choose == {"downstream.shards": ("small/x", "small/y")}


def test_every_trial_has_its_value_and_is_called_by_it(tmp_path: Path, shards: str) -> None:
    table = tables.load(write_table(tmp_path, shards, choose={LR: [0.1, 0.01]}, repeat_over={BATCH: [8, 12]}))
    found = [(one.downstream.optimiser.lr, one.downstream.budget.batch_size) for _, one in table.experiments[::2]]
    assert found == [(0.1, 8), (0.01, 8), (0.1, 12), (0.01, 12)]
    assert tables.described(table.experiments[0][0]) == (
        f"scratch, {BATCH}=8, {LR}=0.1, not pretrained, fine-tuning seed 0"
    )


def test_a_field_that_does_not_exist_is_refused_by_the_experiment_with_the_row(tmp_path: Path, shards: str) -> None:
    with pytest.raises(ConfigError, match=r"row scratch:\n  downstream\.optimiser\.rate: no such field"):
        tables.load(write_table(tmp_path, shards, choose={"downstream.optimiser.rate": [0.1, 0.01]}))


def test_values_that_make_the_same_run_of_a_row_are_refused(tmp_path: Path, shards: str) -> None:
    lists = {"budget.steps": [3, 4]}
    with pytest.raises(
        ConfigError, match=r"row scratch: budget\.steps=3 and budget\.steps=4 are the same run; .*own"
    ):
        tables.load(write_table(tmp_path, shards, repeat_over=lists))
    pretrained = {"name": "[0.3, 0.6]", "pretrain_seeds": [5]}
    path = write_table(tmp_path, shards, repeat_over=lists, rows=[{**SCRATCH, "repeat_over": {}}, pretrained])
    assert [trial.row for trial, _ in tables.load(path).experiments] == ["scratch", "[0.3, 0.6]", "[0.3, 0.6]"]


@pytest.mark.slow
def test_a_value_that_cannot_work_is_refused_before_anything_runs_and_named(tmp_path: Path, shards: str) -> None:
    table = tables.load(write_table(tmp_path, shards, choose={"downstream.task.crop_size": [[32, 32], [32, 30]]}))
    with pytest.raises(ValueError, match=r"row scratch, downstream\.task\.crop_size=\[32, 30\]: .*crop_size"):
        tables.check(table)
    with pytest.raises(ValueError, match=r"row scratch.*crop_size"):
        forecast.of_table(table)


def test_a_table_without_a_validation_split_is_refused(tmp_path: Path, shards: str) -> None:
    table = tables.load(write_table(tmp_path, shards, choose={LR: [1, 2]}), ["downstream.val_split=none"])
    with pytest.raises(
        ValueError, match=r"row scratch, .*lr=1: .*0 samples .* in split 'none', .*downstream\.val_split"
    ):
        tables.check(table)


def test_the_choice_is_made_of_the_runs_own_scores_and_told_to_mlflow(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tables.load(
        write_table(tmp_path, shards, rows=[SCRATCH], choose={LR: [0.1, 0.01, 1]}, metric="test/iou_mean")
    )

    def ended(experiment: Any, *_: Any) -> FinetuningResult:
        lr = experiment.downstream.optimiser.lr
        if lr == 1:
            raise RunError("loss is nan")
        return FinetuningResult(tmp_path / f"finetune-{lr}", "k", {"iou_mean": 0.5 - lr, "test/iou_mean": 0.3 + lr})

    monkeypatch.setattr(finetune, "finetune", ended)
    monkeypatch.setattr(Tracker, "_send", lambda self: [])
    tracker = Tracker(tmp_path / "tracked", "unused")
    tracker.start("tiny", "table", "k")
    (line,) = runs._run_trials(table, 1, tracker, lambda text: None)
    assert line.choice is not None
    assert (line.choice.settings, line.summary.values) == ({LR: 0.01}, (0.31,))
    (told,) = (entry["tags"] for entry in posted(tracker.folder, ("tags",)))
    assert told == {"chosen/scratch": line.choice.remark(3)}
    assert told["chosen/scratch"].endswith("(lr 0.1: 0.400; lr 0.01: 0.490; lr 1: no score, 0 of 1 repeats)")
    assert "scratch | lr 0.01 | 0.310 |" in (table.folder / "table.md").read_text()


def test_curves_are_of_the_value_that_was_chosen(tmp_path: Path) -> None:
    config = table_of(rows=[{"name": "a"}], finetune_seeds=[1])
    ended = outcomes_of(config, by_lr(0.5, 0.7))
    results = Results()
    for place, one in enumerate(ended):
        folder = tmp_path / str(one.trial.tried[LR])
        folder.mkdir()
        (folder / HISTORY).touch()
        results.ended[place] = EndedTrial(one, (folder, []), (folder, 1.0))
    shown = results.chosen(aggregate(config, results.outcomes))
    assert shown.pretrainings == {"a": (tmp_path / "0.01", [])}
    assert shown.finetunings == {"a": [(tmp_path / "0.01", 1.0)]}


def test_settings_are_written_as_on_a_command_line() -> None:
    assert worded({LR: 0.1, "method.crops.iou": [0, 0.5], "encoder.name": "unet"}) == (
        f"{LR}=0.1, method.crops.iou=[0, 0.5], encoder.name=unet"
    )


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_table_run_at_once_keeps_the_rate_that_learns_and_names_the_one_that_diverges(
    tmp_path: Path, shards: str, ray_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tested = {**SCRATCH, "overrides": {**SCRATCH["overrides"], "downstream.test_split": "test"}}
    path = write_table(
        tmp_path,
        shards,
        rows=[tested],
        concurrent=2,
        choose={LR: [1e30, 0.01]},
        choose_repeats=1,
        finetune_seeds=[0, 1],
    )
    table, said = tables.load(path), list[str]()
    (line,) = runs.run(table, said.append)
    assert line.choice is not None
    assert line.choice.settings == {LR: 0.01}
    assert [one.num_complete for one in line.choice.tried] == [0, 1]
    assert line.summary.num_values == 2
    assert "3 of 3: scratch" in said[-1]
    assert [failure.partition(": ")[0] for failure in line.failures] == [f"{LR}=1e+30"]
    assert line.choice.remark(3).startswith(f"{LR}=0.01 is chosen by score on split val (lr 1e+30: no score, 0 of 1")
    rows = list(csv.DictReader((table.folder / "table.csv").open()))
    assert {(row[LR], row["chosen"], row["score"] == row["validation score"]) for row in rows} == {
        ("1e+30", "False", True),
        ("0.01", "True", True),
    }


def test_where_the_first_repeats_choose_the_others_run_with_the_chosen_value_alone() -> None:
    config = table_of(choose={LR: [0.1, 0.01, 1.0]}, choose_repeats=1, finetune_seeds=[1, 2, 3])
    trials = trials_of(config)
    assert [(one.finetune_seed, one.decides) for one in trials if one.row == "a"][2:5] == [
        (1, True),
        (2, False),
        (2, False),
    ]
    assert len(expected(trials)) == 2 * (3 + 2)
    first = [one for one in outcomes_of(config, by_lr(0.5, 0.7)) if one.trial.finetune_seed == 1]
    later = next(one for one in trials if one.finetune_seed == 2)
    assert is_needed(config, later, [one for one in first if one.trial.tried[LR] != 1.0]) is None
    assert [is_needed(config, one, first) for one in trials if one.finetune_seed == 3 and one.row == "b"] == [
        False,
        True,
        False,
    ]
    # Later repeats have no say, though with 0.1 they would be better.
    ended = first + [
        Outcome(one, 0.2, validation=0.9 if one.tried[LR] == 0.1 else 0.1) for one in trials if not one.decides
    ]
    (line, _) = aggregate(config, [one for one in ended if is_needed(config, one.trial, first)])
    assert line.choice is not None
    assert line.choice.settings == {LR: 0.01}
    assert [one.num_repeats for one in line.choice.tried] == [1, 1, 1]
    assert line.summary.values == pytest.approx((0.61, 0.2, 0.2))


def test_repeats_of_a_row_that_chooses_nothing_need_no_choice() -> None:
    config = table_of(rows=[{"name": "a", "choose": {}}, {"name": "b"}], choose_repeats=1)
    assert [one.decides for one in trials_of(config)] == [True, True, True, True, False, False]
    failed = outcomes_of(config, lambda trial: None)
    assert not any(is_needed(config, one, failed) for one in trials_of(config) if not one.decides)
