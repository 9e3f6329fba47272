"""Mistakes in a file are explained by the names that the file uses, with the nearest known name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config.files import resolve
from orchestrator.config.refusal import ConfigError, prefixed
from orchestrator.ingest import request
from orchestrator.sweeps import sweep
from orchestrator.tables import cohort, table
from tests.orchestrator.config.test_experiment import tree

DOWNSTREAM = {
    "shards": "x",
    "task": {"name": "segmentation", "crop_size": [32, 32]},
    "optimiser": {"lr": 0.1},
    "budget": {"steps": 3, "batch_size": 4},
}
STAGES = {"method": None, "optimiser": None, "budget": None}
BRIEF = {"optimiser": {"lr": 0.1, "warmup_epochs": 3}, "budget": {"epochs": 2, "batch_size": 4}}
LATE = {"method": {"name": "rotation"}, **BRIEF}
RELATING = {"name": "mask", "method": {"name": "jssl_mask"}}
OF_SLICES = {
    "name": "inter",
    "method": {"name": "jssl_cluster"},
    "encoder": {"name": "resnet", "spatial_dims": 3},
    "start": {"encoder": "mask"},
}
STAGE = {"method": {"name": "rotation"}, "budget": {"steps": 1, "batch_size": 2}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encodr": {}}, "encodr: no such field (did you mean encoder?)"),
        ({"encoder": {"featurs": [4]}}, "encoder.featurs: no such field (did you mean features?)"),
        ({"encoder": {"spatial_dims": "two"}}, "encoder.spatial_dims: expected 2 or 3, found 'two'"),
        ({"encoder": {"name": "uent"}}, "encoder.name: there is no 'uent' (did you mean unet?); expected one of "),
        ({"method": {"crops": {"iuo": [0, 1]}}}, "method.crops.iuo: no such field (did you mean iou?)"),
        ({"method": {"zzz": 1}}, "method.zzz: no such field; expected one of augment, augment_other, crops, name, "),
        ({"method": {"name": "vco"}}, "method.name: there is no 'vco' (did you mean voco?); expected one of "),
        ({"optimiser": {"name": "sdg"}}, "found 'sdg' (did you mean sgd?)"),
        ({"budget": {"epcohs": 3}}, "budget.epcohs: no such field (did you mean epochs?)"),
        ({"budget": {"steps": 3}}, "budget: epochs=2.0, steps=3; give exactly one of the two"),
        ({"budget": {"batch_size": 0}}, "budget.batch_size: expected a number greater than 0, found 0"),
        ({"data": {"shards": None}}, "data.shards: expected a valid string, found None"),
        ({"data": 3}, "data: expected a mapping of fields, found 3"),
        ({"probe": {"shards": "x", "size": "big"}}, "probe.size: expected a valid integer or a list, found 'big'"),
        ({"downstream": {**DOWNSTREAM, "frozen_levels": "al"}}, "downstream.frozen_levels: expected a valid integer"),
        ({"downstream": {**DOWNSTREAM, "task": {"name": "segmentatoin"}}}, "(did you mean segmentation?)"),
        ({"downstream": {**DOWNSTREAM, "fold": 2}}, "downstream: fold 2 of num_folds None; expected 0 to 0"),
        ({"downstream": {**DOWNSTREAM, "encoder": {"norn": 1}}}, "norn: no such field (did you mean norm?)"),
        ({"stages": [{**STAGE, "budgt": {}}]}, "stages.0.budgt: no such field (did you mean budget?)"),
        ({"stages": [{**STAGE, "optimiser": {}}]}, "stages.0.optimiser.lr: missing; it has no default"),
        ({**STAGES, "stages": [STAGE, STAGE]}, "stages are named pretrain, pretrain; give each a name of its own"),
        ({**STAGES, "stages": [{**STAGE, "name": "../x"}]}, "stages.0.name: expected"),
        (
            {"method": {"name": "jssl_mask"}},
            "method jssl_mask cannot train encoder unet; expected encoder slice_transformer: set "
            "encoder.name=slice_transformer, or take another method",
        ),
        (
            {**STAGES, "encoder": {"name": "slice_transformer"}, "stages": [RELATING, {**RELATING, **OF_SLICES}]},
            "stage inter: method jssl_cluster cannot train encoder resnet; expected encoder slice_transformer: set",
        ),
        ({"optimiser": {"lr": 0.1, "final_lr": 0.2}}, "optimiser: final_lr 0.2 is above lr 0.1"),
        ({"optimiser": {"lr": 0.1, "betas": [0.9, 1]}}, "optimiser.betas.1: expected a number less than 1, found 1"),
        ({"encoder": {"features": [4, 4, 8, 8, 8, 0]}}, "encoder.features.5: expected a number greater than 0"),
        (
            {"encoder": {"name": "resnet3d", "spatial_dims": 3, "depth_strides": [1, 2]}},
            "encoder.depth_strides: expected 'kept' or 'vanilla' or at least 6 items, found [1, 2]",
        ),
        (
            {"encoder": {"name": "resnet3d", "spatial_dims": 3, "depth_strides": "keep"}},
            "encoder.depth_strides: expected 'kept' or 'vanilla' or a list, found 'keep' (did you mean kept?)",
        ),
        ({"encoder": {"features": [4, 4]}}, "encoder.features: expected at least 6 items, found [4, 4]"),
        ({"probe": {"shards": "x", "size": [0, 32]}}, "probe.size.0: expected a number greater than 0, found 0"),
        ({"downstream": {**DOWNSTREAM, "evaluate_every_epoch_from": -1}}, "from: expected a number greater than or"),
        (
            {"downstream": {**DOWNSTREAM, "frozen_epochs": 3}},
            "downstream: frozen_epochs 3 without frozen_levels: no",
        ),
        (
            {"optimiser": {"lr": 0.1, "warmup_epochs": 2.5}},
            "warmup_epochs 2.5 exceeds budget.epochs 2: the",
        ),
        (
            {**STAGES, "stages": [LATE]},
            "stages.0: warmup_epochs 3 exceeds budget.epochs 2: the",
        ),
        (
            {"downstream": {**DOWNSTREAM, **BRIEF}},
            "downstream: warmup_epochs 3 exceeds budget.epochs 2: the rate",
        ),
        ({"optimiser": {"lr": float("nan")}}, "optimiser.lr: expected a finite number, found nan"),
        ({"seed": -1}, "seed: expected a number greater than or equal to 0, found -1"),
        ({"data": {"shards": " "}}, "data.shards: the path is empty; name a folder or an address"),
        (
            {"method": {"augment": {"zoom": [0, 1]}}},
            "augment.zoom.0: expected a number greater than 0, found 0",
        ),
        (
            {"downstream": {**DOWNSTREAM, "task": {"name": "segmentation", "labels": [-1]}}},
            "downstream.task.labels.0: expected a number greater than or equal to 0, found -1",
        ),
    ],
)
def test_an_experiment_s_fault_is_named_as_the_file_writes_it(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(tree(**changes))
    assert said in str(refused.value)
    places = [line.strip().partition(":")[0] for line in str(refused.value).splitlines()[1:]]
    written = {"unet", "simsiam", "rotation", "segmentation", "int", "tuple"}
    assert not written & {part for place in places for part in place.split(".")}, (
        "the members of a union are no fields"
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"row": []}, "table.yaml:\n  row: no such field (did you mean rows?)"),
        ({"rows": [{"name": "a", "overides": {}}]}, "rows.0.overides: no such field (did you mean overrides?)"),
        ({"rows": [{"name": "a", "overrides": {"method.crop.iou": [0, 1]}}]}, "method.crop: no such field (did you"),
        ({"reference": "b"}, "reference 'b' is not one of the rows ['a']"),
    ],
)
def test_a_table_s_fault_is_named(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(tree(downstream=DOWNSTREAM)))
    given = {"name": "t", "title": "t", "experiment": "experiment.yaml", "rows": [{"name": "a"}], "reference": "a"}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump({**given, **fields}))
    with pytest.raises(ConfigError) as refused:
        table.load(tmp_path / "table.yaml")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"spaec": {}}, "sweep.yaml:\n  spaec: no such field (did you mean space?)"),
        ({"space": {"optimiser.lr": {"log_unifrom": [0.1, 1]}}}, "space.optimiser.lr: give exactly one of choice, "),
        (
            {"space": {"optimiser.lr": {"uniform": [0, 1], "setp": 1}}},
            "optimiser.lr.setp: no such field (did you mean",
        ),
        (
            {"search": {"name": "tep"}},
            "search.name: expected 'tpe', 'gp', 'cmaes', 'nsga2', 'random', 'grid' or 'pbt', found 'tep' (did",
        ),
    ],
)
def test_a_sweep_s_fault_is_named(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(tree()))
    given = {
        "name": "s",
        "title": "s",
        "experiment": "experiment.yaml",
        "trials": 2,
        "objective": {"metric": "score"},
    }
    space = {"optimiser.lr": {"log_uniform": [0.1, 1]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**given, "space": space, **fields}))
    with pytest.raises(ConfigError) as refused:
        sweep.load(tmp_path / "sweep.yaml")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sorce": "x"}, "sorce: no such field (did you mean source?)"),
        ({"options": {"patient_colum": "x"}}, "options.patient_colum: no such field (did you mean patient_column?)"),
        ({"recipe": "ct_volum"}, "recipe: there is no 'ct_volum' (did you mean ct_volume?); expected one of "),
        ({"changes": {"spacing": [1, 1, 1]}}, "spacing: no such field (did you mean spacing_mm?)"),
        ({"also": [{"source": "x", "layuot": "csv"}]}, "also.0.layuot: no such field (did you mean layout?)"),
    ],
)
def test_an_ingest_s_fault_is_named(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    given = {"source": "scans", "layout": "volumes", "recipe": "ct_volume", "out": "shards"}
    (tmp_path / "ingest.yaml").write_text(yaml.safe_dump({**given, **fields}))
    with pytest.raises(ConfigError) as refused:
        request.load({}, str(tmp_path / "ingest.yaml"))
    assert said in str(refused.value)


@pytest.mark.parametrize("read", [table.load, sweep.load, cohort.load])
def test_a_file_that_is_no_mapping_is_named(read: Any, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected a mapping of fields, found list"):
        read(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected a mapping of fields, found list"):
        request.load({}, str(tmp_path / "list.yaml"))


def test_a_subject_stands_once_before_a_message() -> None:
    assert prefixed("ingest", "ingest: no source") == "ingest: no source"
    assert prefixed("table", "table quick: no rows") == "table quick: no rows"
    assert prefixed("table", "tables differ") == "table: tables differ"
    assert prefixed("table", "table.yaml: no such file") == "table: table.yaml: no such file"


def test_a_paper_s_experiment_can_be_tried_for_a_few_steps_and_a_row_can_turn_its_freezing_off() -> None:
    warm = tree(optimiser={"lr": 0.1, "warmup_epochs": 2}, downstream={**DOWNSTREAM, "frozen_levels": "all"})
    assert resolve(warm).pretraining[0].optimiser.warmup_epochs == 2
    brief = resolve(warm, ["budget={epochs: null, steps: 4}", "optimiser.warmup_epochs=10"])
    assert brief.pretraining[0].budget.steps == 4
    thawed = resolve(warm, ["downstream.frozen_epochs=20", "downstream.frozen_levels=0"]).downstream
    assert thawed is not None
    assert (thawed.frozen_levels, thawed.frozen_epochs) == (0, 20)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"val_fraction": 0.5, "test_fraction": 0.5},
            "val_fraction 0.5 and test_fraction 0.5 leave no patients",
        ),
        (
            {"options": {"rescale": [0, -1024]}},
            "options.rescale [0.0, -1024.0]: slope 0 makes all intensities alike",
        ),
        ({"options": {"label_names": {"-1": "liver"}}}, "expected a number greater than or equal to 0"),
        ({"changes": {"crop_above": 1}}, "crop_above: expected a number less than 1, found 1"),
        ({"changes": {"pad_to": [0, 64, 64]}}, "pad_to.0: expected a number greater than 0, found 0"),
        ({"max_bad": float("inf")}, "max_bad: expected a finite number, found inf"),
    ],
)
def test_an_ingest_s_senseless_number_is_named(fields: dict[str, Any], said: str) -> None:
    given = {"source": "a", "layout": "volumes", "recipe": "ct_volume", "out": "b"}
    with pytest.raises(ConfigError) as refused:
        request.load({**given, **fields})
    assert said in str(refused.value)
