"""Cohorts: phantoms in place of a table's scans, and a table's rows on them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from data.sources import find_studies
from orchestrator.config.refusal import ConfigError
from orchestrator.ingest import run as ingest_run
from orchestrator.ingest.request import IngestConfig
from orchestrator.tables import cohort as cohorts
from orchestrator.tables import table as tables
from orchestrator.tables.cohort import Cohort
from orchestrator.tables.grid import TableConfig, placed
from tests.experiments import tiny_experiment, tiny_segmentation

INGEST = {
    "layout": "nnunet",
    "recipe": "mri_brain",
    "changes": {"kind": "slices", "spacing_mm": [9, 9, 9], "pad_to": [], "resize_to": [4, 48, 48]},
    "val_fraction": 0.25,
}
VOLUMES = {"layout": "nnunet", "recipe": "mri_brain", "changes": {"pad_to": [], "resize_to": [32, 32, 32]}}


def cohort_of(**changes: Any) -> Cohort:
    return Cohort.model_validate({"kind": "brain", "labelled": 4, "unlabelled": 0, "ingest": INGEST, **changes})


def table_of(**changes: Any) -> TableConfig:
    rows = [
        {"name": "scratch, 10 %", "overrides": {"method": {"name": "scratch"}}, "pretrain_seeds": []},
        {
            "name": "2D, 10 %",
            "overrides": {"data.shards": "shards/slices"},
            "paper": {"mean": 0.8},
            "paper_also": {"iou": 0.7},
        },
        {"name": "2D, 100 %", "overrides": {"budget": {"batch_size": 32}}, "finetune_seeds": [7]},
    ]
    given = {
        "name": "t",
        "title": "Three rows",
        "experiment": "experiment.yaml",
        "reference": "scratch, 10 %",
        "rows": rows,
        "also": ["iou"],
        "finetune_seeds": [0, 1, 2],
    }
    return TableConfig.model_validate({**given, **changes})


def test_a_table_on_a_cohort_has_another_name_and_none_of_the_paper_s_numbers() -> None:
    table = table_of().on_cohort("phantom", {})
    assert (table.name, table.title) == ("t-phantom", "Three rows (on cohort phantom, not the paper's data)")
    assert [(row.paper, row.paper_also) for row in table.rows] == [(None, {})] * 3


def test_missing_rows_are_left_out_on_a_cohort_and_cannot_be_changed_by_it() -> None:
    absent = {"name": "3D, 10 %", "missing": "not built", "paper": {"mean": 0.9}}
    table = table_of(rows=[*(row.model_dump(exclude_unset=True) for row in table_of().rows), absent])
    on_phantoms = table.on_cohort("phantom", {"*10 %": {"seed": 1}})
    assert [row.name for row in on_phantoms.rows] == ["scratch, 10 %", "2D, 10 %", "2D, 100 %"]
    assert [row.overrides.get("seed") for row in on_phantoms.rows] == [1, 1, None]
    with pytest.raises(ValueError, match=r"cohort phantom: it changes row '3D\*', the table's are"):
        table.on_cohort("phantom", {"3D*": {"seed": 1}})


def test_a_table_of_missing_rows_alone_cannot_be_run_on_a_cohort() -> None:
    absent = {"name": "3D", "missing": "not built", "paper": {"mean": 0.9}}
    with pytest.raises(ValueError, match=r"cohort phantom: all 1 rows are missing; run the table without --cohort"):
        table_of(rows=[absent], reference=None).on_cohort("phantom", {})


def test_a_cohort_changes_rows_by_their_names_in_order_and_several_by_a_star() -> None:
    rows = {"2D*": {"budget": {"batch_size": 4}}, "2D, 100 %": {"budget": {"batch_size": 2}, "method.side": 64}}
    table = table_of().on_cohort("phantom", rows)
    assert [row.overrides.get("budget") for row in table.rows] == [None, {"batch_size": 4}, {"batch_size": 2}]
    assert [row.overrides.get("method.side") for row in table.rows] == [None, None, 64]


def test_a_row_s_name_in_brackets_means_itself() -> None:
    table = table_of(rows=[{"name": "[0.3, 0.6]"}, {"name": "scratch, 10 %"}])
    changed = table.on_cohort("phantom", {"[0.3, 0.6]": {"seed": 1}})
    assert [row.overrides for row in changed.rows] == [{"seed": 1}, {}]


def test_a_cohort_that_changes_a_row_which_the_table_has_not_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"cohort phantom: it changes row '3D\*', the table's are .*or several with a \*"
    ):
        table_of().on_cohort("phantom", {"3D*": {"seed": 1}})


def test_shards_that_a_row_names_are_those_of_the_cohort_that_stand_for_them(tmp_path: Path) -> None:
    cohort = cohort_of(also={"shards/slices": VOLUMES})
    table = table_of().on_cohort("phantom", {}, lambda shards: cohort.place(str(tmp_path), shards))
    folder = cohort.folder(str(tmp_path))
    assert table.rows[1].overrides == {"data.shards": str(folder / "shards-shards-slices")}
    assert cohort.place(str(tmp_path), "shards/others") == str(folder / "shards")
    assert {request.out: request.recipe for request in cohort.requests(folder)} == {
        str(folder / "shards"): "mri_brain",
        str(folder / "shards-shards-slices"): "mri_brain",
    }


def test_shards_at_any_depth_of_an_experiment_are_those_of_the_cohort_that_stand_for_them() -> None:
    stages = [{"name": "first"}, {"name": "second", "data": [{"shards": "a", "weight": 2}, {"shards": "b"}]}]
    tree = {"data": {"shards": "c"}, "stages": stages, "probe": {"shards": "d"}, "shards.name": "kept"}
    assert placed(tree, str.upper) == {
        "data": {"shards": "C"},
        "stages": [{"name": "first"}, {"name": "second", "data": [{"shards": "A", "weight": 2}, {"shards": "B"}]}],
        "probe": {"shards": "D"},
        "shards.name": "kept",
    }
    assert placed({"stages.second.data.shards": "a"}, str.upper) == {"stages.second.data.shards": "A"}


def test_a_number_of_the_paper_is_of_a_metric_that_is_shown() -> None:
    with pytest.raises(ValidationError, match=r"a: paper_also\.dice is not one of the metrics under also \['iou'\]"):
        table_of(rows=[{"name": "a", "paper_also": {"dice": 0.5}}], reference="a")


def test_seeds_of_a_cohort_repeat_every_row_and_leave_what_is_not_pretrained_so() -> None:
    table = table_of().on_cohort("phantom", {}, pretrain_seeds=(4,), finetune_seeds=(5, 6))
    assert [table.seeds(row) for row in table.rows] == [((), (5, 6)), ((4,), (5, 6)), ((4,), (5, 6))]
    kept = table_of().on_cohort("phantom", {})
    assert [kept.seeds(row) for row in kept.rows] == [((), (0, 1, 2)), ((0,), (0, 1, 2)), ((0,), (7,))]


def test_a_cohort_s_classes_take_the_place_of_the_table_s_in_metrics(tmp_path: Path) -> None:
    table = table_of(metric="test/dice/liver", also=["iou", "test/dice/tumour", "dice_tumour"])
    renamed = table.with_classes({"tumour": "lesion", "liver": "organ"})
    assert (renamed.metric, renamed.also) == ("test/dice/organ", ("iou", "test/dice/lesion", "dice_tumour"))
    write_table(tmp_path)
    path = tmp_path / "table.yaml"
    path.write_text(path.read_text() + "metric: dice/cancer\nalso: [iou/cancer]\n")
    cohort = tmp_path / "cohort.yaml"
    cohort.write_text(cohort.read_text().replace("classes: {}", "classes: {cancer: lesion}"))
    table = tables.load(path, cohort="phantom")
    assert (table.config.metric, table.config.also) == ("dice/lesion", ("iou/lesion",))


def test_a_folder_is_named_by_what_the_scans_and_shards_depend_on_alone(tmp_path: Path) -> None:
    home = str(tmp_path)
    same = [cohort_of(overrides={"seed": 1}), cohort_of(rows={"a": {}}), cohort_of(finetune_seeds=[1], concurrent=2)]
    same += [cohort_of(classes={"a": "b"})]
    other = [cohort_of(seed=1), cohort_of(labelled=5), cohort_of(ingest=VOLUMES), cohort_of(also={"a": VOLUMES})]
    assert {cohort.folder(home) for cohort in same} == {cohort_of().folder(home)}
    assert len({cohort.folder(home) for cohort in (cohort_of(), *other)}) == 5


def test_further_ingests_may_be_of_phantoms_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = {"kind": "photographs", "labelled": 6, "layout": "csv", "recipe": "natural"}
    same = {**photographs, "options": {"patient_column": "patient"}}
    fewer = {"labelled": 2, **INGEST}
    cohort = cohort_of(also={"shards/a": photographs, "shards/b": same, "shards/c": VOLUMES, "shards/d": fewer})
    folder = cohort.folder(str(tmp_path))
    sources = {Path(request.out).name: Path(request.source).name for request in cohort.requests(folder)}
    assert sources == {
        "shards": "scans",
        "shards-shards-a": "scans-photographs-6-0-0",
        "shards-shards-b": "scans-photographs-6-0-0",
        "shards-shards-c": "scans",
        "shards-shards-d": "scans-brain-2-0-0",
    }
    written, ingested = list[tuple[Any, ...]](), list[str]()
    monkeypatch.setattr(
        cohorts.cohorts, "write", lambda kind, where, *rest: written.append((kind, where.name, *rest))
    )
    monkeypatch.setattr(ingest_run, "ingest", lambda request: ingested.append(Path(request.out).name))
    (folder / "shards-shards-d").mkdir(parents=True)
    (folder / "shards-shards-d" / cohorts.INDEX).touch()
    cohort.prepare(str(tmp_path))
    assert written == [("brain", "scans", 4, 0, 0), ("photographs", "scans-photographs-6-0-0", 6, 0, 0)]
    assert ingested == ["shards", "shards-shards-a", "shards-shards-b", "shards-shards-c"]


@pytest.mark.slow
def test_each_ingest_finds_the_phantoms_of_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = {"kind": "photographs", "layout": "coco", "options": {"modality": "NATURAL"}, "recipe": "natural"}
    found = list[list[str]]()

    def look(request: IngestConfig) -> None:
        studies = find_studies(request.source, request.layout, request.options)
        found.append([Path(study.image[0]).name for study in studies])

    monkeypatch.setattr(ingest_run, "ingest", look)
    cohort_of(also={"shards/photographs": photographs}).prepare(str(tmp_path))
    brains, pictures = found
    assert pictures == [f"phantom_{number:03d}.png" for number in range(4)]
    assert len(brains) == 4
    assert not {*brains} & {*pictures}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labeled": 3}, r"cohort\.yaml:\n  labeled: no such field"),
        (
            {"kind": "heart"},
            r"kind: expected 'abdomen', 'brain', 'fundus', 'chest', 'nodules' or 'photographs', found 'heart'",
        ),
        (
            {"ingest": {**INGEST, "recipe": "mri"}},
            r"cohort brain, ingest:\n  recipe: there is no 'mri'; expected one of",
        ),
        ({"also": {"slices": {"layout": "nnunet"}}}, r"cohort brain, also\.slices:\n  recipe: missing"),
        (
            {"also": {"slices": {"kind": "heart", **INGEST}}},
            r"cohort brain, also\.slices:\n  kind: expected 'abdomen'",
        ),
    ],
    ids=["field", "kind", "recipe", "also", "kind of another"],
)
def test_a_file_that_asks_for_what_there_is_not_is_refused_in_words(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    tree = {"kind": "brain", "labelled": 4, "unlabelled": 0, "ingest": INGEST, **changes}
    (tmp_path / "cohort.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=words):
        cohorts.load(tmp_path / "cohort.yaml")


def test_a_cohort_that_the_table_does_not_name_is_refused_with_those_it_names(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    with pytest.raises(
        ConfigError, match=r"no cohort 'real'; it has phantom; name one, or run the table without --cohort"
    ):
        tables.load(path, cohort="real")


def test_rows_come_after_the_cohort_s_overrides_and_those_after_the_experiment(tmp_path: Path) -> None:
    table = tables.load(write_table(tmp_path), cohort="phantom")
    assert [experiment.budget.steps for _, experiment in table.experiments] == [2, 3]
    assert {experiment.encoder.in_channels for _, experiment in table.experiments} == {4}
    assert {experiment.name for _, experiment in table.experiments} == {"tiny-phantom"}
    folders = {(experiment.data.shards, experiment.downstream.shards) for _, experiment in table.experiments}
    shards = str(table.cohort.folder(str(tmp_path / "runs")) / "shards")
    assert folders == {(shards, shards)}


def write_table(folder: Path) -> Path:
    """Write an experiment, a table of two rows over it, and a cohort of small brains."""
    experiment = tiny_experiment("tiny", "nowhere", folder / "runs", 5, downstream=tiny_segmentation("nowhere"))
    table = {
        "name": "two",
        "title": "Two rows",
        "experiment": "experiment.yaml",
        "reference": "scratch",
        "rows": [
            {"name": "scratch", "overrides": {"method": {"name": "scratch"}}, "pretrain_seeds": []},
            {"name": "three steps", "overrides": {"budget.steps": 3}, "paper": {"mean": 0.9}},
        ],
        "finetune_seeds": [0, 1],
        "cohorts": {"phantom": "cohort.yaml"},
    }
    overrides = {"encoder.in_channels": 4, "budget.steps": 2, "health.times": 0, "downstream.budget.steps": 2}
    cohort = cohort_of(overrides=overrides, pretrain_seeds=[3], finetune_seeds=[3]).model_dump(mode="json")
    for name, tree in (("experiment", experiment), ("table", table), ("cohort", cohort)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder / "table.yaml"
