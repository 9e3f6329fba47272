"""Lines over a field: which rows they join, what they are called, and what is drawn."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.refusal import ConfigError
from orchestrator.results import charts
from orchestrator.results.statistics import summarise
from orchestrator.tables import table as tables
from orchestrator.tables.outcome import Outcome, aggregate
from orchestrator.tables.results import Results, write
from tests.orchestrator.tables.test_table import shards, write_table

__all__ = ["shards"]

SCRATCH: dict[str, Any] = {"method": {"name": "scratch"}}


def rows(**fractions: float | None) -> list[dict[str, Any]]:
    """Return rows from scratch and pretrained for each share of the labels; the default share where it is None."""
    found = []
    for name, share in fractions.items():
        field = {} if share is None else {"downstream.label_fraction": share}
        found += [
            {"name": f"scratch, {name}", "overrides": {**SCRATCH, **field}, "pretrain_seeds": []},
            {"name": f"SimSiam, crops, {name}", "overrides": field, "finetune_seeds": [7]},
        ]
    return found


def load(folder: Path, shards: str, **changes: Any) -> tables.Table:
    changes = {"reference": "scratch, all", "rows": rows(half=0.5, all=None, fifth=0.2), **changes}
    return tables.load(write_table(folder, shards, over="downstream.label_fraction", **changes))


def test_rows_that_differ_in_the_field_alone_are_a_line_in_the_order_of_its_values(
    tmp_path: Path, shards: str
) -> None:
    lines = load(tmp_path, shards).lines
    assert list(lines) == ["scratch", "SimSiam, crops"]
    assert [*lines["scratch"].items()] == [(0.2, "scratch, fifth"), (0.5, "scratch, half"), (1.0, "scratch, all")]
    assert lines["SimSiam, crops"][0.2] == "SimSiam, crops, fifth"


def test_a_row_alone_and_a_row_that_is_the_same_run_as_another_are_lines_of_their_own(
    tmp_path: Path, shards: str
) -> None:
    more = [{"name": "again", "overrides": {}}, {"name": "other", "overrides": {"optimiser.lr": 0.5}}]
    lines = load(tmp_path, shards, rows=[*rows(all=None), *more]).lines
    assert list(lines) == ["scratch, all", "SimSiam, crops, all", "again", "other"]


def test_no_line_is_lost_where_names_begin_alike(tmp_path: Path, shards: str) -> None:
    faster = [
        {"name": f"scratch, {name}", "overrides": {**SCRATCH, "downstream.optimiser.lr": 0.5, **field}}
        for name, field in (("fast half", {"downstream.label_fraction": 0.5}), ("fast all", {}))
    ]
    lines = load(tmp_path, shards, rows=[*rows(half=0.5, all=None), *faster]).lines
    assert list(lines) == ["scratch", "SimSiam, crops", "scratch, fast half"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "downstream.label_fractions",
            r"row scratch, half: over 'downstream.label_fractions': there is no such field "
            r"\(did you mean label_fraction\?\)",
        ),
        ("downstreem.label_fraction", r"there is no such field \(did you mean downstream\?\)"),
        ("downstream.shards", r"over 'downstream.shards': it is '.+'; name a field of numbers"),
    ],
)
def test_a_field_that_is_not_a_number_of_every_row_is_refused(
    tmp_path: Path, shards: str, field: str, message: str
) -> None:
    path = write_table(tmp_path, shards, over=field, reference="scratch, half", rows=rows(half=0.5))
    with pytest.raises(ConfigError, match=message):
        tables.load(path)


def test_the_rows_means_are_drawn_with_what_has_ended(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    figure = charts.points_figure
    monkeypatch.setattr(charts, "points_figure", lambda lines, *words: drawn.update(lines) or figure(lines, *words))
    table = load(tmp_path, shards, finetune_seeds=[0, 1])
    outcomes = [
        Outcome(trial, trial.finetune_seed + experiment.downstream.label_fraction)
        for trial, experiment in table.experiments
        if trial.row.startswith("scratch") and "half" not in trial.row
    ]
    write(table, aggregate(table.config, outcomes), Results())
    assert drawn == {"scratch": {0.2: summarise([0.2, 1.2]), 1.0: summarise([1.0, 2.0])}, "SimSiam, crops": {}}
    assert (table.folder / "curve-over-downstream.label_fraction.png").read_bytes().startswith(b"\x89PNG")


def test_bars_of_lines_stand_apart_at_the_places_that_were_tried() -> None:
    lines = {"a": {0.2: summarise([1.0, 3.0]), 0.6: summarise([4.0])}, "b": {0.2: summarise([2.0])}, "c": {}}
    axis = charts.points_figure(lines, "title", "share", "score").axes[0]
    means = [container.lines[0] for container in axis.containers]
    assert [list(line.get_ydata()) for line in means] == [[2.0, 4.0], [2.0], []]
    first, second = means[0].get_xdata(), means[1].get_xdata()
    assert first[0] < 0.2 < 0.25 > second[0] >= 0.2
    assert list(axis.get_xticks()) == [0.2, 0.6]
