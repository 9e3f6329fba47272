"""The table as Markdown, CSV and terminal text."""

import csv
import io
from dataclasses import replace

from rich.console import Console

from orchestrator.tables.grid import Outcome, TableConfig, aggregate, trials_of
from orchestrator.tables.text import cells, comma_separated, markdown, terminal

CONFIG = TableConfig.model_validate(
    {
        "name": "t",
        "title": "Two rows",
        "experiment": "e.yaml",
        "reference": "scratch",
        "finetune_seeds": [1, 2, 3],
        "notes": ["the paper divides by n"],
        "rows": [
            {"name": "scratch", "pretrain_seeds": [], "paper": {"mean": 0.843, "deviation": 0.004}},
            {"name": "a|b"},
        ],
    }
)
VALUES = {"scratch": (0.5, 0.52, 0.54), "a|b": (0.75, 0.76, 0.77)}


def outcomes() -> list[Outcome]:
    left = {name: list(values) for name, values in VALUES.items()}
    return [Outcome(trial, left[trial.row].pop(0)) for trial in trials_of(CONFIG)]


def test_what_the_paper_prints_of_further_metrics_has_columns_of_its_own() -> None:
    scratch, other = CONFIG.rows
    changes = {"also": ("iou", "recall"), "rows": (scratch.model_copy(update={"paper_also": {"iou": 0.7}}), other)}
    config = CONFIG.model_copy(update=changes)
    judged = [replace(outcome, also={"iou": 0.6, "recall": 0.5}) for outcome in outcomes()]
    heading, rows = cells(config, aggregate(config, judged))
    assert heading[5:] == ["iou", "recall", "paper", "iou, paper"]
    assert [row[-1] for row in rows] == ["0.700", "-"]


def test_cells_hold_mean_deviation_count_runs_p_and_the_paper_s_number() -> None:
    heading, rows = cells(CONFIG, aggregate(CONFIG, outcomes()))
    assert heading == ["row", "score", "n", "runs", "p against scratch", "paper"]
    assert rows == [
        ["scratch", "0.520 ± 0.020", "3", "0.500  0.520  0.540", "-", "0.843 ± 0.004"],
        ["a|b", "0.760 ± 0.010", "3", "0.750  0.760  0.770", "< 0.001", "-"],
    ]


def test_markdown_keeps_its_columns_where_a_name_holds_a_bar() -> None:
    lines = markdown(CONFIG, aggregate(CONFIG, outcomes())).splitlines()
    assert lines[0] == "# Two rows"
    assert lines[5].startswith("| a\\|b | 0.760 ± 0.010 | 3 |")
    assert lines[7] == (
        "- mean ± sample deviation over the runs; p: Welch's t-test, two-sided, not corrected for several rows"
    )
    assert lines[8] == "- the paper divides by n"


def test_a_failed_run_and_a_missing_p_are_said_below_the_table() -> None:
    failed = [Outcome(o.trial, None, "out of memory") if o.trial.row == "a|b" else o for o in outcomes()[:4]]
    text = markdown(CONFIG, aggregate(CONFIG, failed))
    assert "- a|b: no p: needs 2 runs in each row; there are 0 and 2" in text
    assert text.count("- a|b: a run failed: out of memory") == 2


def test_csv_gives_back_every_run_with_its_seeds_and_all_digits() -> None:
    given = [
        Outcome(outcomes()[1].trial, 1 / 3, run="finetune-12ab"),
        Outcome(outcomes()[0].trial, None, "failed, twice"),
    ]
    rows = list(csv.DictReader(io.StringIO(comma_separated(CONFIG, given))))
    assert rows[0] == {
        "row": "a|b",
        "pretrain_seed": "0",
        "finetune_seed": "1",
        "score": str(1 / 3),
        "run": "finetune-12ab",
        "failure": "",
    }
    assert (rows[1]["pretrain_seed"], rows[1]["score"], rows[1]["failure"]) == ("", "", "failed, twice")


def test_terminal_shows_the_same_cells() -> None:
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(terminal(CONFIG, aggregate(CONFIG, outcomes())))
    text = console.export_text()
    for cell in ("0.520 ± 0.020", "0.843 ± 0.004", "p against scratch", "Two rows"):
        assert cell in text


def printed(config: TableConfig, given: list[Outcome]) -> list[str]:
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(terminal(config, aggregate(config, given)))
    return console.export_text().splitlines()


def test_the_terminal_has_the_best_row_first_and_marked_and_files_keep_the_file_s_order() -> None:
    lines = printed(CONFIG, outcomes())
    rows = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert rows == ["a|b", "scratch"]
    assert [line for line in lines if "0.760 ± 0.010 best" in line]
    assert any("score: higher is better; best: the highest mean, which need not be significant" in li for li in lines)
    text = markdown(CONFIG, aggregate(CONFIG, outcomes()))
    assert text.index("| scratch |") < text.index("| a\\|b |")
    assert " best" not in text


def test_where_lower_is_better_the_lowest_mean_is_the_best_and_one_row_alone_is_not_marked() -> None:
    config = CONFIG.model_copy(update={"metric": "collapse"})
    lines = printed(config, outcomes())
    assert [line.split("│")[1].strip() for line in lines if line.startswith("│")] == ["scratch", "a|b"]
    assert any("0.520 ± 0.020 best" in line for line in lines)
    alone = [outcome for outcome in outcomes() if outcome.trial.row == "scratch"]
    assert not any("best" in line for line in printed(CONFIG, alone))


def test_further_metrics_are_columns_with_mean_and_deviation() -> None:
    config = CONFIG.model_copy(update={"also": ("dice/liver",)})
    given = [replace(o, also={"dice/liver": o.value / 2}) for o in outcomes()]
    heading, rows = cells(config, aggregate(config, given))
    assert heading[5:] == ["dice/liver", "paper"]
    assert [row[5] for row in rows] == ["0.260 ± 0.010", "0.380 ± 0.005"]
    assert comma_separated(config, given).splitlines()[:2] == [
        "row,pretrain_seed,finetune_seed,score,dice/liver,run,failure",
        "scratch,,1,0.5,0.25,,",
    ]
