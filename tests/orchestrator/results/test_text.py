"""The table as Markdown, CSV and terminal text."""

import csv
import io
import re
from dataclasses import replace

from rich.console import Console

from orchestrator.tables.grid import TableConfig
from orchestrator.tables.outcome import Outcome, aggregate
from orchestrator.tables.text import answered, cells, comma_separated, markdown, terminal
from orchestrator.tables.trials import trials_of

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
    assert heading[6:] == ["iou", "recall", "paper", "iou, paper"]
    assert [row[-1] for row in rows] == ["0.700", "-"]


def test_cells_hold_mean_deviation_count_runs_p_and_the_paper_s_number() -> None:
    heading, rows = cells(CONFIG, aggregate(CONFIG, outcomes()))
    assert heading == ["row", "score", "n", "runs", "difference", "p against scratch", "paper"]
    assert rows == [
        ["scratch", "0.520 ± 0.020", "3", "0.500  0.520  0.540", "-", "-", "0.843 ± 0.004"],
        ["a|b", "0.760 ± 0.010", "3", "0.750  0.760  0.770", "+0.240 (+0.198 to +0.282)", "< 0.001", "-"],
    ]


def test_markdown_keeps_its_columns_where_a_name_holds_a_bar() -> None:
    lines = markdown(CONFIG, aggregate(CONFIG, outcomes())).splitlines()
    assert lines[0] == "# Two rows"
    assert lines[5].startswith("| **a\\|b** | **0.760 ± 0.010** | 3 |"), "it is better than each other row"
    assert lines[7:] == [
        "- mean ± sample deviation over the runs",
        "- p: Welch's t-test over runs, two-sided, Holm-corrected for 1 row: of other patients it says nothing; "
        "difference with its 95 % interval",
        "- so many runs show a difference of 0.054 four times in five, before the correction",
        "- a|b is better than each other row (p < 0.05, Holm-corrected)",
        "- the paper divides by n",
    ]


def test_the_answer_says_which_row_leads_and_whether_that_is_beyond_chance() -> None:
    assert answered(CONFIG, aggregate(CONFIG, outcomes())) == (
        "a|b (score 0.760) is better than each other row (p < 0.05, Holm-corrected)"
    )
    alike = [replace(outcome, value=0.5 + 0.1 * (number % 3)) for number, outcome in enumerate(outcomes())]
    said = answered(CONFIG, aggregate(CONFIG, alike))
    assert said.startswith("no row is best: "), said
    assert re.search(r" \(score 0\.\d{3}\) has the best mean, not distinguishable from (scratch|a\|b)$", said), said
    assert answered(CONFIG, aggregate(CONFIG, outcomes()[:1])) == ""


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
        "missing": "",
        "paper": "",
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
    assert any("a|b is better than each other row (p < 0.05, Holm-corrected)" in line for line in lines)
    assert any("score: higher is better" in line for line in lines)
    text = markdown(CONFIG, aggregate(CONFIG, outcomes()))
    assert text.index("| scratch |") < text.index("| **a\\|b** |")
    assert " best |" not in text


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
    assert heading[6:] == ["dice/liver", "paper"]
    assert [row[6] for row in rows] == ["0.260 ± 0.010", "0.380 ± 0.005"]
    assert comma_separated(config, given).splitlines()[:2] == [
        'row,pretrain_seed,finetune_seed,score,dice/liver,run,failure,missing,paper,"dice/liver, paper"',
        "scratch,,1,0.5,0.25,,,,0.843,",
    ]


def with_missing() -> TableConfig:
    """The table with two rows that cannot be run, one of them for each metric."""
    rows = [
        *(row.model_dump(exclude_unset=True) for row in CONFIG.rows),
        {"name": "PCRLv2", "missing": "it is not built", "paper": {"mean": 0.99}},
        {"name": "MG", "missing": "it is not built", "paper_also": {"iou": 0.25}},
        {"name": "I3D", "missing": "it needs weights", "paper": {"mean": 0.7, "deviation": 0.01}},
    ]
    return TableConfig.model_validate({**CONFIG.model_dump(exclude_unset=True), "also": ["iou"], "rows": rows})


def test_a_missing_row_is_shown_as_missing_beside_the_paper_s_numbers() -> None:
    config = with_missing()
    given = [replace(outcome, also={"iou": 0.5}) for outcome in outcomes()]
    heading, rows = cells(config, aggregate(config, given))
    assert heading == ["row", "score", "n", "runs", "difference", "p against scratch", "iou", "paper", "iou, paper"]
    assert rows[2:] == [
        ["PCRLv2", "missing", "-", "-", "-", "-", "-", "0.990", "-"],
        ["MG", "missing", "-", "-", "-", "-", "-", "-", "0.250"],
        ["I3D", "missing", "-", "-", "-", "-", "-", "0.700 ± 0.010", "-"],
    ]
    text = markdown(config, aggregate(config, given))
    assert "| PCRLv2 | missing | - | - | - | - | - | 0.990 | - |" in text
    assert "- missing (it is not built): PCRLv2, MG\n- missing (it needs weights): I3D\n" in text
    assert "no p" not in text


def test_missing_rows_come_last_on_the_terminal_and_are_never_the_best() -> None:
    config = with_missing()
    given = [replace(outcome, also={"iou": 0.5}) for outcome in outcomes()]
    lines = printed(config, given)
    rows = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert rows == ["a|b", "scratch", "PCRLv2", "MG", "I3D"]
    assert [line.split("│")[1].strip() for line in lines if " best │" in line] == ["a|b"]


def test_csv_has_a_line_for_each_missing_row_with_its_reason_and_the_paper_s_numbers() -> None:
    config = with_missing()
    rows = list(csv.DictReader(io.StringIO(comma_separated(config, outcomes()))))
    assert [(row["row"], row["missing"], row["paper"], row["iou, paper"]) for row in rows[-3:]] == [
        ("PCRLv2", "it is not built", "0.99", ""),
        ("MG", "it is not built", "", "0.25"),
        ("I3D", "it needs weights", "0.7", ""),
    ]
    assert {row[name] for row in rows[-3:] for name in ("pretrain_seed", "finetune_seed", "score", "run")} == {""}
    assert {row["missing"] for row in rows[:-3]} == {""}
    assert len(rows) == 6 + 3


def test_a_table_of_missing_rows_alone_speaks_of_no_test() -> None:
    rows = [{"name": "I3D", "missing": "it needs weights", "paper": {"mean": 0.7}}]
    config = TableConfig.model_validate({"name": "t", "title": "One", "experiment": "e.yaml", "rows": rows})
    assert markdown(config, aggregate(config, [])).splitlines() == [
        "# One",
        "",
        "| row | score | n | runs | paper |",
        "| --- | --- | --- | --- | --- |",
        "| I3D | missing | - | - | 0.700 |",
        "",
        "- missing (it needs weights): I3D",
    ]
    assert len(printed(config, [])) > 3


def test_the_terminal_leaves_further_metrics_to_the_files_where_they_are_many() -> None:
    organs = tuple(f"dice/{number}" for number in range(5))
    given = [replace(outcome, also=dict.fromkeys(organs, 0.25)) for outcome in outcomes()]
    few, many = (CONFIG.model_copy(update={"also": organs[:count]}) for count in (4, 5))
    assert not any("table.csv" in line for line in printed(few, given))
    assert any("0.250" in line for line in printed(few, given))
    assert any(
        "in table.md and table.csv also: dice/0, dice/1, dice/2, dice/3, dice/4" in li for li in printed(many, given)
    )
    assert not any("0.250" in line for line in printed(many, given))
    assert markdown(many, aggregate(many, given)).count("0.250 ± 0.000") == 2 * 5
