"""Table files: each resolves, also on its cohorts, and holds every number that its paper prints."""

import re
from collections import Counter
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.experiment import Experiment
from orchestrator.config.files import read
from orchestrator.config.parts import Downstream, Stage
from orchestrator.tables import table as tables
from orchestrator.tables.grid import TableConfig
from orchestrator.tables.row import TableRow
from tests.printed_tables import EXPERIMENTS, PRINTED, SEEDS, Columns, PrintedNumber, PrintedTable, rows_of

FILES = sorted(path for path in EXPERIMENTS.rglob("*.yaml") if {"rows", "experiment"} <= read(path).keys())
PLACED = [(table, columns) for table in PRINTED for columns in table.files]
# Cohorts whose runs are to say something, and the steps of their longest training.
LONGER = {
    "phantom_table_7.yaml": 400,
    "phantom_figure_4.yaml": 400,
    "phantom_volumes.yaml": 100,
    "phantom_slices.yaml": 100,
}
# Where the text spells a name in another way than the table file.
SPELT = {"jiasaw": "jigsaw", "modelgeneis": "modelsgenesis"}
seeds_are_here = pytest.mark.skipif(
    not SEEDS.is_dir(), reason=f"no {SEEDS}: the printed numbers are not compared with the papers' text"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_a_table_file_resolves_as_it_is_and_on_each_of_its_cohorts(path: Path) -> None:
    table = tables.load(path)
    trials = Counter(trial.row for trial, _ in table.experiments)
    assert set(trials) == {row.name for row in table.config.rows if row.missing is None}
    for name in table.config.cohorts:
        small = tables.load(path, cohort=name)
        assert {trial.row for trial, _ in small.experiments} == set(trials)
        assert all(row.paper is None for row in small.config.rows)
        absent = {row.name for row in small.config.rows if row.missing is not None}
        assert absent <= {row.name for row in table.config.rows if (row.missing or "").endswith("is not there")}
        lists = any(lists for row in small.config.rows for lists in small.config.lists(row))
        assert not lists or table.config.cohorts[name] in LONGER, "it is to stay short"
        trained = [one for _, experiment in small.experiments for one in trainings_of(experiment)]
        budgets = [one.budget for one in trained]
        most = LONGER.get(table.config.cohorts[name], 8)
        assert max(budget.steps or budget.epochs or 0 for budget in budgets) <= most


def test_every_number_of_a_paper_is_in_a_table_that_is_compared_with_its_text() -> None:
    """So that a new table cannot be forgotten in ``PRINTED``."""
    printing = {str(path.relative_to(EXPERIMENTS)) for path in FILES if any(r.paper for r in rows_in(path))}
    assert printing == {columns.file for _, columns in PLACED}


@seeds_are_here
@pytest.mark.parametrize(("table", "columns"), PLACED, ids=[columns.file for _, columns in PLACED])
def test_a_table_file_holds_the_rows_and_digits_of_the_text(table: PrintedTable, columns: Columns) -> None:
    assert differences(read(EXPERIMENTS / columns.file), table, columns) == []


@seeds_are_here
@pytest.mark.parametrize(("table", "columns"), PLACED, ids=[columns.file for _, columns in PLACED])
def test_any_changed_digit_of_any_row_is_found(table: PrintedTable, columns: Columns) -> None:
    tree = read(EXPERIMENTS / columns.file)
    printed = {(part, name) for row in tree["rows"] for part in ("paper", "paper_also") for name in row.get(part, {})}
    for part, name in printed - {("paper", "values")}:
        changed = deepcopy(tree)
        rows = [row for row in changed["rows"] if name in row.get(part, {})]
        for row in rows:
            row[part][name] += 0.0001
        unlike = differences(changed, table, columns)
        assert [one.partition(":")[0] for one in unlike] == [row["name"] for row in rows]


@seeds_are_here
def test_rows_in_another_order_and_lost_rows_are_found() -> None:
    table, columns = PLACED[0]
    tree = read(EXPERIMENTS / columns.file)
    tree["rows"][2], tree["rows"][3] = tree["rows"][3], tree["rows"][2]
    assert [one.partition(":")[0] for one in differences(tree, table, columns)] == ["SimCLR", "MAE3D"]
    del tree["rows"][3]
    assert differences(tree, table, columns) == ["18 rows, 19 are printed"]


def differences(tree: dict[str, Any], table: PrintedTable, columns: Columns) -> list[str]:
    """Say of each row of a table's file where its numbers, or its name, are not those of the text in its place."""
    config = TableConfig.model_validate(tree)
    printed = rows_of(table)
    printed = [printed[place] for place in columns.lines or range(len(printed))]
    printed = [row for row in printed if row.numbers[columns.columns[0]].value is not None]
    if len(config.rows) != len(printed):
        return [f"{len(config.rows)} rows, {len(printed)} are printed"]
    unlike = []
    for row, expected in zip(config.rows, printed, strict=True):
        numbers = [scaled(expected.numbers[place], table.scale) for place in columns.columns]
        if not columns.runs:  # files have no deviations of further metrics
            numbers[1:] = [(mean, None) for mean, _ in numbers[1:]]
        if (found := numbers_of(config, row, columns)) != numbers:
            unlike.append(f"{row.name}: {found}, printed are {numbers}")
        elif row.missing and not same(row.name, expected.label):
            unlike.append(f"{row.name}: printed is the name {expected.label}")
    return unlike


def same(name: str, label: str) -> bool:
    """Tell whether a missing row has the name of the text, where a cell may hold the names of several rows."""
    ours, theirs = squeezed(name), squeezed(label)
    return theirs in ours or ours in theirs


def trainings_of(experiment: Experiment) -> tuple[Stage | Downstream, ...]:
    """Return what an experiment trains: its stages only where their methods train anything."""
    assert experiment.downstream is not None
    return experiment.trainings if experiment.trains else (experiment.downstream,)


def rows_in(path: Path) -> tuple[TableRow, ...]:
    return TableConfig.model_validate(read(path)).rows


def numbers_of(config: TableConfig, row: TableRow, columns: Columns) -> list[tuple[Decimal, Decimal | None]]:
    """Return a row's mean and deviation, then its runs or its further metrics, as the file's decimals."""
    assert row.paper is not None
    found = [(row.paper.mean, row.paper.deviation)]
    further = row.paper.values if columns.runs else [row.paper_also[name] for name in config.also if row.paper_also]
    found += [(value, None) for value in further]
    return [(Decimal(str(mean)), None if off is None else Decimal(str(off))) for mean, off in found]


def scaled(number: PrintedNumber, scale: int) -> tuple[Decimal | None, Decimal | None]:
    return (
        None if number.value is None else number.value / scale,
        None if number.deviation is None else number.deviation / scale,
    )


def squeezed(name: str) -> str:
    """Return the letters and digits of a name, without references."""
    letters = "".join(re.findall(r"\w", re.sub(r"\[.*?\]|<.*?>", "", name))).lower()
    return SPELT.get(letters, letters)
