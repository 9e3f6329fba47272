import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.experiment import Experiment
from orchestrator.config.files import load, merge, read, resolve, schema
from orchestrator.config.parts import TRAINABLE, Budget
from orchestrator.config.refusal import ConfigError
from orchestrator.config.yaml_text import parsed
from orchestrator.direction import direction_of
from orchestrator.ingest import request as ingest_request
from orchestrator.sweeps import sweep as sweeps
from orchestrator.sweeps.space import extremes
from orchestrator.tables import table as tables
from orchestrator.training.outline import outline_method, outline_of
from tests.batches import facts_of
from tests.clusters import ROOT


def tree(**changes: Any) -> dict[str, Any]:
    return merge(
        {
            "name": "test",
            "data": {"shards": "shards"},
            "encoder": {"name": "unet", "spatial_dims": 2, "in_channels": 1},
            "method": {"name": "simsiam", "crops": {"size": [32, 32], "iou": [0.3, 0.6]}},
            "optimiser": {"lr": 0.1},
            "budget": {"epochs": 2, "batch_size": 8},
        },
        changes,
    )


def test_a_misspelt_field_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"method\.crops\.iuo: no such field \(did you mean iou\?\)"):
        resolve(tree(method={"crops": {"iuo": [0.3, 0.6]}}))


def test_an_override_reaches_a_nested_field_and_stays_typed() -> None:
    experiment = resolve(tree(), ["method.crops.iou=[0.6,1]", "budget.epochs=3"])
    assert experiment.pretraining[0].method.crops.iou == (0.6, 1.0)
    assert experiment.pretraining[0].budget.epochs == 3


def test_an_override_reaches_a_member_of_a_list_by_its_name_or_place() -> None:
    flow = {name: tree()[name] for name in ("optimiser", "budget")}
    stages = [{**flow, "name": name, "method": {"name": "simmim"}} for name in ("first", "second")]
    several = {**tree(), "stages": stages, "method": None, "optimiser": None, "budget": None}
    sets = [{"shards": "a", "weight": 3}, {"shards": "b", "weight": 1}]
    asked = resolve(
        {**several, "data": sets},
        ["data.1.weight=2", "stages.second.method.mask_ratio=0.3", "stages.0.budget.epochs=9"],
    )
    assert [one.weight for one in asked.data] == [3, 2]
    assert [stage.method.mask_ratio for stage in asked.pretraining] == [0.6, 0.3]
    assert [stage.budget.epochs for stage in asked.pretraining] == [9, 2]
    with pytest.raises(ConfigError, match="stages: expected a list, found"):
        resolve(several, ["stages.third.method.mask_ratio=0.3"])
    assert resolve({**tree(), "data": sets}, ["data.shards=c"]).data.shards.endswith("c")


def test_an_override_by_null_removes_a_member_that_is_a_mapping() -> None:
    members = {
        "sets": [{"shards": "a"}, {"shards": "b"}],
        "stages": [{"name": "first"}, {"name": "second"}, {"name": "third"}],
        "size": [3, None, 5],
    }
    asked = merge(
        members, {"sets": {"0": None}, "stages": {"first": None, "third": {"seed": 1}}, "size": {"0": None}}
    )
    assert asked["sets"] == [{"shards": "b"}]
    assert asked["stages"] == [{"name": "second"}, {"name": "third", "seed": 1}]
    assert asked["size"] == [None, None, 5]


@pytest.mark.parametrize("text", ["budget.epochs", "=3"])
def test_an_override_without_field_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected field\.subfield=value"):
        resolve(tree(), [text])


def test_naming_another_method_drops_the_fields_of_the_old_one() -> None:
    assert resolve(tree(), ["method.name=scratch"]).pretraining[0].method.name == "scratch"


FINETUNING = {
    "task": {"name": "segmentation"},
    "shards": "labelled",
    "optimiser": {"lr": 0.1},
    "budget": {"epochs": 2, "batch_size": 1},
}


def test_each_training_takes_only_the_workers_that_its_batch_is_shared_out_over() -> None:
    experiment = resolve(tree(downstream=FINETUNING), ["resources.workers=8", "budget.batch_size=12"])
    assert [experiment.resources_of(training).workers for training in experiment.trainings] == [6, 1]
    assert [experiment.idle_workers(training) for training in experiment.trainings] == [
        "budget.batch_size 12 cannot be shared out evenly over resources.workers 8: 6 workers train; a batch of 8 or "
        "16 would use all 8",
        "downstream.budget.batch_size 1 cannot be shared out evenly over resources.workers 8: 1 worker trains; a "
        "batch of 8 would use all 8",
    ]


def test_a_fine_tuning_inherits_the_resources_that_it_is_not_given() -> None:
    own = {"workers": 1, "micro_batch_size": 1}
    overrides = ["resources={workers: 8, gpu: true, storage: s3://bucket/folder}", "downstream.budget.batch_size=4"]
    experiment = resolve(tree(downstream={**FINETUNING, "resources": own}), overrides)
    task = experiment.downstream
    assert task is not None
    assert experiment.resources_of(task) == experiment.resources.model_copy(update=own)
    assert experiment.shares_of(task).num_chunks == 4
    assert experiment.idle_workers(task) is None
    assert Experiment.model_validate(json.loads(experiment.model_dump_json())) == experiment
    elsewhere = resolve(tree(downstream=FINETUNING), overrides)
    assert experiment.finetune_key("scratch", "digest") == elsewhere.finetune_key("scratch", "digest")


def test_a_budget_is_epochs_or_steps_but_not_both() -> None:
    with pytest.raises(ConfigError, match=r"epochs=2\.0, steps=5; give exactly one"):
        resolve(tree(), ["budget.steps=5"])


@pytest.mark.parametrize(
    ("epochs", "num_samples", "batch_size", "steps"),
    [
        (0.29, 100, 1, 29),
        (0.57, 1000, 10, 57),
        (1.1, 300, 3, 110),
        (4.35, 200, 2, 435),
        (2.5, 7, 3, 5),
        (0.1, 5, 8, 1),
    ],
)
def test_a_budget_of_epochs_has_every_whole_step_of_the_decimal_that_was_written(
    epochs: float, num_samples: int, batch_size: int, steps: int
) -> None:
    budget = Budget(epochs=epochs, batch_size=batch_size)
    assert budget.total_steps(num_samples) == steps


@settings(deadline=None)
@given(st.decimals("0.01", "99", places=2), st.integers(1, 10_000), st.integers(1, 512))
def test_steps_are_those_of_exact_arithmetic(epochs: Decimal, num_samples: int, batch_size: int) -> None:
    budget, product = Budget(epochs=float(epochs), batch_size=batch_size), int(epochs * 100) * num_samples
    assert budget.total_steps(num_samples) == max(1, product // (100 * batch_size))
    assert abs(budget.epochs_to_steps(float(epochs), num_samples) * 100 * batch_size - product) <= 50 * batch_size


def test_a_file_inherits_from_its_base_and_changes_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tree()))
    (tmp_path / "child.yaml").write_text("base: base.yaml\nseed: 7\nmethod: {crops: {iou: [0, 0]}}\n")
    experiment = load(tmp_path / "child.yaml")
    assert (experiment.seed, experiment.pretraining[0].method.crops.iou) == (7, (0.0, 0.0))
    assert experiment.pretraining[0].method.crops.size == (32, 32)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load(tmp_path / "nowhere.yaml")


def test_the_run_key_depends_on_what_decides_results_and_on_nothing_else() -> None:
    key = resolve(tree()).pretrain_key("digest")
    same = [
        ["resources={workers: 4, micro_batch_size: 1, max_failures: 9}"],
        ["home=elsewhere"],
        ["tracking.pictures=false"],
        ["data.shards=moved"],
    ]
    other = [["seed=1"], ["method.crops.iou=[0,1]"], ["budget.epochs=3"], ["encoder.features=[4,4,8,8,16,4]"]]
    assert {resolve(tree(), overrides).pretrain_key("digest") for overrides in same} == {key}
    assert len({key, *(resolve(tree(), overrides).pretrain_key("digest") for overrides in other)}) == 5
    assert resolve(tree()).pretrain_key("another digest") != key


def test_the_short_form_equals_a_single_stage() -> None:
    short = tree()
    stage = {name: short.pop(name) for name in ("method", "optimiser", "budget")}
    assert resolve({**short, "stages": [stage]}).pretrain_key("d") == resolve(tree()).pretrain_key("d")


def test_a_resolved_experiment_reads_back_as_itself() -> None:
    experiment = resolve(tree())
    assert Experiment.model_validate(json.loads(experiment.model_dump_json())) == experiment


def test_the_schema_knows_every_method_and_allows_base() -> None:
    text = json.dumps(schema())
    assert all(word in text for word in ('"simsiam"', '"scratch"', '"swin_unetr"', '"base"'))


def test_a_field_that_a_file_names_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("name: one\nseed: 1\nbudget: {steps: 1, steps: 2}\n")
    with pytest.raises(ConfigError, match=r"twice.yaml: .*\bsteps stands here and in line 3, expected it once"):
        load(tmp_path / "twice.yaml")


FILES = sorted((ROOT / "experiments").rglob("*.yaml"))
TREES = {path: read(path) for path in FILES}
TABLES, SWEEPS, INGESTS, COHORTS = (
    [path for path in FILES if fields <= TREES[path].keys()]
    for fields in ({"rows", "experiment"}, {"space"}, {"source"}, {"kind"})
)
EXPERIMENTS = sorted({*FILES} - {*TABLES, *SWEEPS, *INGESTS, *COHORTS})
ON_COHORTS = [(path, name) for path in TABLES for name in TREES[path].get("cohorts", {})]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_of_experiments_opens_with_the_command_that_runs_it(path: Path) -> None:
    opening = re.split(r"\n(?:name|source|base|kind):", path.read_text())[0]
    assert all(line.startswith("#") for line in opening.splitlines())
    assert "# Run:" in opening


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_valid_and_says_what_to_expect(path: Path) -> None:
    load(path)
    assert "# Expected:" in path.read_text()


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_shares_its_batches_out_over_any_number_of_workers(path: Path, workers: int) -> None:
    experiment = load(path, [f"resources.workers={workers}"])
    for training in experiment.trainings:
        train = experiment.resources_of(training).workers
        assert 1 <= train <= workers
        assert training.budget.batch_size % train == 0


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_table_resolves_for_each_of_its_rows(path: Path) -> None:
    table = tables.load(path)
    assert {trial.row for trial, _ in table.experiments} == {row.name for row in table.config.runnable}
    assert direction_of(table.config.metric) is not None or not table.config.runnable


@pytest.mark.slow
@pytest.mark.parametrize(("path", "name"), ON_COHORTS, ids=lambda value: getattr(value, "stem", value))
def test_every_row_of_a_table_fits_each_of_its_cohorts(path: Path, name: str) -> None:
    table = tables.load(path, cohort=name)
    assert table.cohort is not None
    shards = {
        request.out: (request.resolved_recipe.spatial_dims, request.resolved_recipe.resize_to[-3:])
        for request in table.cohort.requests(table.cohort.folder(table.experiments[0][1].home))
    }
    for trial, experiment in table.experiments:
        for stage in experiment.pretraining:
            method = outline_method(stage.method, experiment.encoder_of(stage), facts_of({0: "none", 1: "some"}))
            for data in experiment.data_of(stage):
                spatial_dims, size = shards[data.shards]
                fed, _ = TRAINABLE[stage.method.name].takes(outline_of(experiment.encoder_of(stage)))
                assert spatial_dims == fed, trial.row
                if size:  # pictures may be of any
                    method.check_extent(size[-spatial_dims:])
        assert shards[experiment.downstream.shards][0] == experiment.downstream_encoder.spatial_dims, trial.row


def test_every_cohort_belongs_to_a_table() -> None:
    named = {path.parent / read(path)["cohorts"][name] for path, name in ON_COHORTS}
    assert named | {path.parent / str(parsed(path.read_text()).get("base")) for path in named} >= {*COHORTS} >= named


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_resolves_at_the_ends_of_its_space(path: Path) -> None:
    sweep = sweeps.load(path)
    points = extremes(sweep.config.space, sweep.base.model_dump(mode="json"))
    assert len([sweep.experiment(point) for point in points]) >= 2
    assert "# Expected:" in path.read_text()


@pytest.mark.parametrize("path", INGESTS, ids=lambda path: path.stem)
def test_every_ingest_file_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDIOLOGY_TEST_DATA", "scans")
    assert ingest_request.load({}, str(path)).out.startswith("shards/")


def test_an_ingest_file_whose_environment_variable_is_not_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ingest.yaml"
    path.write_text("# of $SOMEBODY\nsource: $NOT_SET/scans\n")
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match="environment variable NOT_SET is not set; export it first"):
        ingest_request.load({}, str(path))


def test_a_part_that_the_pretrained_encoder_does_not_have_is_refused_by_name() -> None:
    slices = {"name": "slices", "slices": {"name": "unet", "spatial_dims": 2}}
    task = {
        "task": {"name": "segmentation"},
        "shards": "s",
        "optimiser": {"lr": 1},
        "budget": {"steps": 1, "batch_size": 1},
    }
    for encoder, expected in (({"name": "unet", "spatial_dims": 3}, "none: it has none"), (slices, "slices")):
        with pytest.raises(ConfigError, match=f"downstream.part 'middle': .*no such part; expected {expected}"):
            resolve(tree(encoder=encoder, downstream={**task, "part": "middle"}))
