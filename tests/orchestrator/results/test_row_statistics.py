"""All numbers of a table's rows: each is that of the function behind it, and explained in the documentation."""

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.results.claims import RowScores, against, corrected
from orchestrator.results.paired import bootstrap_interval, permuted_p, ranks_of
from orchestrator.results.row_statistics import HEADING, row_statistics
from orchestrator.results.statistics import Comparison, Summary, summarise
from tests.documents import ROOT

PATIENTS = [f"p{number:02d}" for number in range(12)]


@dataclass(frozen=True)
class Row:
    name: str
    scores: RowScores
    comparison: Comparison | None = None

    @property
    def summary(self) -> Summary:
        return summarise(self.scores.values)


def row(name: str, runs: np.ndarray) -> Row:
    values = runs.mean(1).tolist()
    return Row(name, RowScores(values, [dict(zip(PATIENTS, run.tolist(), strict=True)) for run in runs]))


def written(rows: list[Row], reference: str | None = "scratch") -> dict[str, dict[str, str]]:
    read = list(csv.DictReader(io.StringIO(row_statistics(rows, reference, "max"))))
    assert all([*line] == HEADING for line in read)
    return {line["row"]: line for line in read}


@pytest.fixture
def runs() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    cases = rng.normal(0.7, 0.1, len(PATIENTS))
    return [cases + gain + rng.normal(0, 0.03, (2, len(PATIENTS))) for gain in (0, 0.02, 0.05)]


def test_each_number_is_that_of_the_function_behind_it(runs: list[np.ndarray]) -> None:
    rows = [row(name, own) for name, own in zip(("scratch", "a", "b"), runs, strict=True)]
    compared = corrected({one.name: against(one.scores, rows[0].scores) for one in rows[1:]})
    found = written([rows[0], *(replace(one, comparison=compared[one.name]) for one in rows[1:])])
    tested, ranks = compared["b"], ranks_of(runs, higher_is_better=True)
    assert tested is not None
    assert tested.interval is not None
    interval = bootstrap_interval(runs[2], runs[0])
    assert interval is not None
    expected = {
        "runs": 2, "patients": 12, "mean": runs[2].mean(), "deviation": runs[2].mean(1).std(ddof=1),
        "difference": runs[2].mean() - runs[0].mean(), "low": tested.interval[0], "high": tested.interval[1],
        "p": tested.p, "p_holm": tested.corrected, "p_false_claim": tested.false_claim,
        "detectable": tested.detectable,
        "low_drawn": interval[0], "high_drawn": interval[1], "p_patients": permuted_p(runs[2], runs[0]),
        "rank": ranks[2].mean, "rank_low": ranks[2].interval[0], "rank_high": ranks[2].interval[1],
        "first": ranks[2].first,
    }  # fmt: skip
    assert {name: float(found["b"][name]) for name in expected} == pytest.approx(expected)
    assert [*expected] == HEADING[1:]
    assert (found["scratch"]["patients"], found["scratch"]["p"], found["scratch"]["p_patients"]) == ("12", "", "")


def test_without_scores_of_patients_ranks_are_over_runs_and_nothing_else_is_drawn() -> None:
    rows = [Row("scratch", RowScores([0.5, 0.52])), Row("a", RowScores([0.7, 0.72])), Row("none", RowScores(()))]
    found = written([rows[0], replace(rows[1], comparison=against(rows[1].scores, rows[0].scores)), rows[2]])
    assert [*found] == ["scratch", "a"]
    assert (found["a"]["rank"], found["a"]["first"], found["a"]["patients"]) == ("1.0", "1.0", "")
    assert found["a"]["low_drawn"] == found["a"]["p_patients"] == ""
    assert float(found["a"]["p"]) < 0.02


def test_each_column_is_explained() -> None:
    text = Path(ROOT / "docs" / "explanation" / "statistics.md").read_text()
    assert [name for name in HEADING if f"`{name}`" not in text] == []
