"""The report: one page that answers, with its figures and pictures in it, and asks no network for anything."""

import base64
import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageColor
from safetensors.torch import save_file

from data.shards.index import ShardSet
from orchestrator import cli
from orchestrator.judging.cases import CASES, to_parquet, with_patients
from orchestrator.judging.pictures import RIGHT, WRONG
from orchestrator.judging.validation import evidence_of
from orchestrator.report import charts, content
from orchestrator.report.case_panels import TRUE_BOX, Panel
from orchestrator.report.content import ReportContent, report_of
from orchestrator.report.page import page
from orchestrator.report.search import importance
from orchestrator.results.compare import pretrainings_of
from orchestrator.results.findings import (
    MemberCopy,
    MemberCourse,
    SweepFindings,
    TrialValues,
    findings_in,
    note_findings,
)
from orchestrator.results.run_cards import Card
from orchestrator.results.usual import JudgedBy, note, noted
from orchestrator.runs.network import NETWORK, build_network
from orchestrator.sweeps.settings import Objective
from orchestrator.sweeps.study import Ending
from orchestrator.sweeps.trial import Trial, closed, opened
from orchestrator.training.world import World
from tests.orchestrator.results.test_compare import Runs, runs
from tests.shardsets import write_findings, write_pictures, write_slices

__all__ = ["runs"]

WIDTHS = {"scratch": [4, 4, 8, 8, 8, 4], "wide": [8, 8, 8, 8, 8, 8]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Slices of twelve patients, three of which are held out."""
    return write_slices(tmp_path_factory.mktemp("slices"), num_patients=12, size=40)


class Addresses(HTMLParser):
    """Collects what a page would fetch, and the tags that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")
        ]


def read(html: str) -> Addresses:
    addresses = Addresses()
    addresses.feed(html)
    return addresses


def headings(report: ReportContent) -> list[str]:
    return [chart.heading for chart in report.charts]


def judged(runs: Runs, row: str, seed: int, metric: str = "dice_mean", **changes: Any) -> None:
    """Write a fine-tuning with a network, initial weights as they are, and its score of each patient."""
    experiment = runs.experiment(**{"method": {"name": "scratch"}, "downstream.seed": seed, **changes})
    shards = ShardSet.open(experiment.data.shards)
    task = build_network(experiment, shards, None).eval()
    rows = shards.select("val", having=task.needs).row_ids
    scores = task.scores(evidence_of(task, shards, rows, World()))
    run = runs.finetuned(experiment, scores.metrics[metric], row=row)
    (run.folder / "network").mkdir()
    save_file(task.network.state_dict(), run.folder / "network" / NETWORK)
    (run.folder / CASES).write_bytes(to_parquet("validation", with_patients(scores.cases, shards, rows)))


@pytest.mark.slow
def test_the_page_answers_first_and_holds_the_table_its_notes_and_its_figures(runs: Runs) -> None:
    runs.rows()
    report = report_of(runs.compare())
    assert report.answer == ("[0.3, 0.6] (score 0.633) is better than each other row (p < 0.05, Holm-corrected).")
    assert report.best
    assert [row[0] for row in report.rows] == ["[0.3, 0.6]", "scratch"], "the best row first"
    assert headings(report) == [
        "Scores of runs", "score while training", "collapse while pretraining", "loss while pretraining",
    ]  # fmt: skip
    html = unescape(page([report]))
    assert html.index(report.answer) < html.index("<table>") < html.index("<svg")
    for said in (*report.notes, *report.rows[0], "raydiology report runs/tiny", "Each run of these rows has a score"):
        assert said in html
    assert re.search(r'<tr class="best"><td>\[0\.3, 0\.6\]</td>', html)


@pytest.mark.slow
def test_a_row_whose_encoder_was_filled_from_a_file_costs_what_its_fine_tunings_cost(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.rows()
    compared = runs.compare()

    def curve(self: Any, card: Card, metric: str) -> tuple[list[float], list[float]]:
        trained = card.kind == "finetune" and metric == "samples_per_s"
        return ([0, 1], [6.0, 3.0]) if trained else ([], [])

    monkeypatch.setattr(type(compared.choice.source), "curve", curve)
    assert headings(report_of(compared)) == ["Scores of runs", "Score against cost"]
    for line in compared.lines:
        starts = pretrainings_of(compared, line.scored)
        assert charts._hours(compared, line.scored, starts) == pytest.approx((12 / 6 + 12 / 3) / 3600)


@pytest.mark.slow
def test_nothing_is_fetched_and_no_script_runs(runs: Runs) -> None:
    runs.rows()
    html = page([report_of(runs.compare())])
    seen = read(html)
    assert [one for one in seen.found if not one.startswith(("#", "data:"))] == []
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    assert not re.search(r"@import|url\((?!#)", html)


@pytest.mark.slow
def test_words_of_runs_are_escaped_and_failures_are_named(runs: Runs) -> None:
    runs.finetuned(runs.experiment(**{"method": {"name": "scratch"}}), 0.5, row="<b>scratch</b>")
    failed = runs.experiment(**{"method": {"name": "scratch"}, "downstream.seed": 1})
    runs.finetuned(failed, 0.5, row="<b>scratch</b>", ends="failed")
    report = report_of(runs.compare())
    assert report.answer == "There is only one row with a score, so nothing is compared."
    assert len(report.failures) == 1
    assert report.failures[0].endswith(": failed: loss is nan at step 4")
    html = page([report])
    assert "<b>" not in html
    assert "&lt;b&gt;scratch" in html


def test_many_failures_are_counted_where_they_are_not_named(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MOST_FAILURES", 1)
    for seed in range(3):
        failed = runs.experiment(**{"method": {"name": "scratch"}, "downstream.seed": seed})
        runs.finetuned(failed, 0.5, row="scratch", ends="failed")
    first, more = report_of(runs.compare()).failures
    assert first.endswith("failed: loss is nan at step 4")
    assert more == "and 2 more"


@pytest.mark.slow
def test_figures_are_svg_in_the_page_s_colour_without_a_size_of_their_own(runs: Runs) -> None:
    runs.rows()
    for chart in report_of(runs.compare()).charts:
        root = ElementTree.fromstring(chart.svg)
        assert {"width", "height"} & set(root.attrib) == set()
        assert "viewBox" in root.attrib
        assert "currentColor" in chart.svg
        assert "#000000" not in chart.svg


@pytest.mark.slow
def test_data_are_told_with_digest_counts_and_quarantine(runs: Runs) -> None:
    runs.rows(repeats=1)
    (told,) = report_of(runs.compare()).data
    facts = dict(told.facts)
    assert facts["digest"] == ShardSet.open(runs.shards).digest[:16]
    assert facts["patients"] == "12"
    assert "train" in facts["samples"]
    Path(runs.shards, "index.parquet").rename(Path(runs.shards, "away"))
    try:
        (told,) = report_of(runs.compare()).data
    finally:
        Path(runs.shards, "away").rename(Path(runs.shards, "index.parquet"))
    assert told.facts == (("digest", "not known: the shards are out of reach"),)


@pytest.mark.slow
def test_the_worst_the_middle_and_the_best_case_are_shown_under_each_row(runs: Runs) -> None:
    for seed in range(2):
        judged(runs, "scratch", seed)
        judged(runs, "wide", seed, **{"encoder.features": [8, 8, 8, 8, 8, 8]})
    report = report_of(runs.compare())
    assert "Scores of patients" in headings(report)
    assert [case.heading.split(" (")[0] for case in report.cases] == ["Worst case", "Middle case", "Best case"]
    assert len({case.heading for case in report.cases}) == 3
    for case in report.cases:
        names = [panel.words.split(":")[0] for panel in case.panels]
        assert names[:2] == ["image", "truth"]
        assert sorted(names[2:]) == ["scratch", "wide"]
        assert len({panel.image for panel in case.panels[:2]}) == 2, "the truth is drawn over the image"
        assert {name for name, _ in case.legend} <= {"liver", "kidney"} != set()
    scores = [np.mean([float(panel.words.rpartition(": ")[2]) for panel in case.panels[2:]]) for case in report.cases]
    assert scores == sorted(scores)
    seen = read(page([report]))
    assert sum(one.startswith("data:image/png;base64,") for one in seen.found) == 12


@pytest.mark.slow
def test_cases_of_classes_are_pictures_in_a_frame_with_what_each_network_says(runs: Runs, tmp_path: Path) -> None:
    shards = write_pictures(tmp_path / "pictures", num_classes=3)
    task = {"name": "classification", "size": 32, "score": "accuracy"}
    for row, features in WIDTHS.items():
        judged(runs, row, 0, "accuracy", **on(shards, task), **{"encoder.features": features})
    for case in report_of(runs.compare()).cases:
        truth, *told = [panel.words for panel in case.panels]
        assert re.fullmatch(r"truth: grade [012]", truth)
        assert sorted(words.split(":")[0] for words in told) == ["scratch", "wide"]
        assert all(re.fullmatch(r"\w+: grade [012] [01]\.\d\d", words) for words in told)
        right = [words.split(": ")[1][:7] == truth.split(": ")[1] for words in told]
        colours = [pixels(panel)[0, 0].tolist() for panel in case.panels[1:]]
        assert colours == [list(ImageColor.getrgb(RIGHT if one else WRONG)) for one in right]
        assert case.legend == ()


@pytest.mark.slow
def test_cases_of_boxes_are_pictures_with_true_boxes_and_detections(runs: Runs, tmp_path: Path) -> None:
    shards = write_findings(tmp_path / "boxed")
    task = {
        "name": "detection", "size": 64, "pyramid_channels": 8, "head_dims": [16], "most_detections": 5,
        "score_threshold": 0.0,
    }  # fmt: skip
    for row, features in WIDTHS.items():
        judged(runs, row, 0, "ap50", **on(shards, task), **{"encoder.features": features})
    report = report_of(runs.compare())
    assert [case.heading.split(" (")[0] for case in report.cases] == ["Worst case", "Middle case", "Best case"]
    for case in report.cases:
        truth, *told = [panel.words for panel in case.panels]
        assert re.fullmatch(r"truth: [0-9]+ box(es)?", truth)
        assert sorted(words.split(":")[0] for words in told) == ["scratch", "wide"]
        assert all(re.search(r": 5 boxes detected(, [34] drawn)?$", words) for words in told)
        assert case.legend[0] == ("true box", TRUE_BOX)
        assert {name for name, _ in case.legend[1:]} <= {"mass", "nodule"} != set()
        shown = [pixels(panel) for panel in case.panels]
        marked = (shown[0] == ImageColor.getrgb(TRUE_BOX)).all(axis=2)
        assert marked.any() == (truth != "truth: 0 boxes")
        assert all((own != shown[0]).any() for own in shown[1:]), "detections are drawn over it"


def on(shards: str, task: dict[str, Any]) -> dict[str, Any]:
    """Return the changes that make an experiment one of this task on other shards."""
    return {"data.shards": shards, "downstream.shards": shards, "downstream.task": task}


def pixels(panel: Panel) -> np.ndarray:
    """Return what a panel shows, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(panel.image.partition(",")[2]))))


@pytest.mark.slow
def test_cases_are_left_out_where_networks_or_shards_are_gone(runs: Runs) -> None:
    judged(runs, "scratch", 0)
    for network in runs.home.rglob(NETWORK):
        network.unlink()
    assert report_of(runs.compare()).cases == ()


@pytest.mark.slow
def test_a_table_s_report_is_on_its_own_metric_and_draws_the_field_that_it_is_over(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    table = runs.grouped("table-first", "table", "table first")
    names = {0.5: "half", 1.0: "all"}
    for share, row in names.items():
        for seed in range(2):
            changes = {"method": {"name": "scratch"}, "downstream.label_fraction": share, "downstream.seed": seed}
            runs.finetuned(runs.experiment(**changes), share / 2 + seed / 100, parent=table, row=row)
    points = tuple(("Scratch", share, row) for share, row in names.items())
    judged_by = JudgedBy(
        metric="dice_mean",
        also=("dice/liver",),
        reference="all",
        over="downstream.label_fraction",
        points=points,
        again="raydiology table x.yaml",
    )
    note(table, judged_by)
    assert noted(table) == judged_by
    report = report_of(runs.compare(table))
    assert "dice_mean over downstream.label_fraction" in headings(report)
    assert report.heading[:2] == ("row", "dice_mean")
    assert "p against all" in report.heading
    assert report.heading[-1] == "dice/liver"
    assert report.commands[0] == "raydiology table x.yaml"
    assert report_of(runs.compare(table, metric="score")).heading[1] == "score"
    assert cli.main(["report", str(table)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {table / 'report.html'}"
    assert (table / "report.html").read_text() == page([report])


@pytest.mark.slow
def test_several_tables_are_compared_over_the_rows_that_they_share(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for number in range(3):
        tables.append(runs.grouped(f"table-{number}", "table", f"table {number}"))
        for place, row in enumerate(("scratch", "a", "b")):
            changes = {
                "downstream.optimiser.lr": 0.01 * (number + 1),
                "downstream.optimiser.weight_decay": 0.01 * place,
            }
            experiment = runs.experiment(**{"method": {"name": "scratch"}, **changes})
            runs.finetuned(experiment, 0.1 * place + 0.01 * number, parent=tables[-1], row=row)
    assert cli.main(["report", *map(str, tables), "--out", str(runs.home / "all.html")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {runs.home / 'all.html'}"
    html = (runs.home / "all.html").read_text()
    assert "No row is best over 3 tables: b (mean rank 1.00) ranks first, not distinguishable from a." in html
    assert "critical difference of 1.91 (Nemenyi, 0.05)" in html
    assert html.count("<article>") == 3
    assert html.index("Critical differences") < html.index("<article>")
    assert cli.main(["report", *map(str, tables[:2]), "--out", str(runs.home / "two.html")]) == 0
    assert "at least 3 tables share at least 3 rows" in (runs.home / "two.html").read_text()


@pytest.mark.slow
def test_a_sweep_s_report_draws_its_trials_over_the_fields_and_their_importance(runs: Runs) -> None:
    sweep, rng = runs.grouped("sweep-lr-12ab", "sweep", "sweep lr"), np.random.default_rng(0)
    for number in range(9):
        lr, ratio = float(10 ** rng.uniform(-4, -1)), float(rng.uniform(0, 1))
        trial = Trial(
            number=number,
            point={"optimiser.lr": lr, "method.mask_ratio": ratio},
            experiment=runs.experiment(**{"optimiser.lr": lr}),
            objective=Objective(metric="dice_mean"),
            folder=sweep / "trials" / f"{number:03d}",
            label=f"trial {number}: lr {lr}",
            params={"optimiser.lr": lr, "method.mask_ratio": ratio},
        )
        tracker = opened(trial)
        tracker.metrics([{"step": 1, "dice_mean": -np.log10(lr)}])
        closed(trial, tracker, Ending("done", float(-np.log10(lr))) if number else Ending("pruned", 0.1))
    note(sweep, JudgedBy(metric="dice_mean", again="raydiology sweep lr.yaml"))
    report = report_of(runs.compare(sweep))
    charts = {chart.heading: chart for chart in report.charts}
    assert ">optimiser.lr<" in charts["Trials over the fields"].svg
    assert charts["Importance of fields"].words.startswith("The share of the variance of dice_mean over 8 trials")
    assert report.answer.startswith("No row is best: trial ")
    assert report.failures[0].endswith("pruned")
    assert report.commands[0] == "raydiology sweep lr.yaml"


def of_sweep(runs: Runs, number: int, value: float, lr: float) -> None:
    """Write a trial of the sweep "sweep-found" that ran to its end."""
    trial = Trial(
        number=number,
        point={"optimiser.lr": lr},
        experiment=runs.experiment(**{"optimiser.lr": lr}),
        objective=Objective(metric="dice_mean"),
        folder=runs.grouped("sweep-found", "sweep", "sweep found") / "trials" / f"{number:03d}",
        label=f"trial {number}: lr {lr}",
        params={"optimiser.lr": lr},
    )
    closed(trial, opened(trial), Ending("done", value))


@pytest.mark.slow
def test_a_sweep_s_report_answers_shows_and_draws_what_the_sweep_has_found(runs: Runs) -> None:
    sweep = runs.grouped("sweep-found", "sweep", "sweep found")
    values = [(0.5, 1.0), (0.7, 2.0), (0.6, 3.0)]
    for number, (dice, _) in enumerate(values):
        of_sweep(runs, number, dice, 0.1 * (number + 1))
    note(sweep, JudgedBy(metric="dice_mean", again="raydiology sweep lr.yaml"))
    names = [f"trial {number}: lr {0.1 * (number + 1)}" for number in range(3)]
    found = SweepFindings(
        answer="On the Pareto front of dice_mean and hours are 2 of 3 trials.",
        notes=("asha left out 2 fine-tunings",),
        shown={names[1]: "0.7000 ± 0.0100"},
        sought=("dice_mean", "hours"),
        trials=tuple(
            TrialValues(*one, leads) for *one, leads in zip(names, values, (True, True, False), strict=True)
        ),
    )
    note_findings(sweep, found)
    assert findings_in(str(sweep)) == found
    report = report_of(runs.compare(sweep))
    assert (report.answer, report.notes[0]) == (found.answer, found.notes[0])
    assert next(row for row in report.rows if "0.2" in row[0])[1] == "0.7000 ± 0.0100"
    charts = {chart.heading: chart for chart in report.charts}
    assert ">Pareto front<" in charts["dice_mean against hours"].svg
    assert "Trials over the fields" in charts
    members = (
        MemberCourse(0, {8: 0.5, 16: 0.6}, {"optimiser.lr": {8: 1.0, 16: 1.0}}),
        MemberCourse(1, {8: 0.1, 16: 0.7}, {"optimiser.lr": {8: 0.001, 16: 0.8}}),
    )
    note_findings(sweep, SweepFindings(members=members, copies=(MemberCopy(8, 1, 0),)))
    charts = {chart.heading: chart for chart in report_of(runs.compare(sweep)).charts}
    for heading in ("dice_mean of the population", "optimiser.lr of the population"):
        assert ">member 1<" in charts[heading].svg
        assert charts[heading].svg.count("stroke-dasharray") == 1, "the copy"
    assert "Trials over the fields" not in charts, "segments are no trials of their own"


@pytest.mark.slow
def test_importance_names_the_field_that_decides() -> None:
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(30):
        lr, word, ratio = float(10 ** rng.uniform(-4, -1)), str(rng.choice(["a", "b"])), float(rng.uniform(0, 1))
        trials.append(({"lr": lr, "word": word, "ratio": ratio}, float(np.log10(lr) + 0.1 * ratio)))
    found = importance(trials)
    assert max(found, key=lambda field: found[field]) == "lr"
    assert found["lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
