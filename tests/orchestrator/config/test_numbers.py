"""Every number of every config is refused where it cannot mean anything: not finite, or negative where it counts."""

import importlib
import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from tests.test_architecture import MODULES, ROOT

ENCODER = {"name": "unet", "spatial_dims": 2}
BUDGET = {"epochs": 2, "batch_size": 8}
SHARDS = {"shards": "shards"}
NAMED = {"name": "a", "title": "a", "experiment": "a.yaml"}
# The fields without which a config is no config; it is changed in one number at a time.
CROPS = {"num": 2, "area": [0.1, 1]}
REQUIRED: dict[str, dict[str, Any]] = {
    "Budget": BUDGET,
    "AreaCrops": CROPS,
    "Choice": {"choice": [1, 2]},
    "Cohort": {
        "kind": "brain",
        "labelled": 2,
        "unlabelled": 2,
        "ingest": {"layout": "volumes", "recipe": "ct_volume"},
    },
    "CropsConfig": {"large_crops": CROPS, "small_crops": CROPS, "augment": {}},
    "Data": SHARDS,
    "DistillationConfig": {"large_crops": CROPS, "small_crops": CROPS, "augment": {}},
    "Downstream": {**SHARDS, "task": {"name": "segmentation"}, "optimiser": {"lr": 0.1}, "budget": BUDGET},
    "Experiment": {"name": "a", "data": SHARDS, "encoder": ENCODER, "method": {"name": "simsiam"}},
    "IngestConfig": {"source": "a", "layout": "volumes", "recipe": "ct_volume", "out": "b"},
    "Integer": {"integer": [1, 2]},
    "Ramp": {"start": 0.5, "end": 1},
    "WeightsFile": {"weights": "encoder.safetensors"},
    "Interval": {"interval": [0, 1]},
    "LogUniform": {"log_uniform": [0.1, 1]},
    "Objective": {"metric": "score"},
    "Optimiser": {"lr": 0.1},
    "PaperNumbers": {"mean": 0.5},
    "ConvUNetConfig": {"spatial_dims": 3, "blocks": [1] * 6},
    "Phantoms": {"kind": "brain", "labelled": 2, "unlabelled": 2},
    "Probe": {**SHARDS, "size": 32},
    "Recipe": {"name": "a", "kind": "volume", "window": [0, 1], "window_kind": "value"},
    "TableRow": {"name": "a"},
    "TrialCost": {"cost": "hours"},
    "Samples": SHARDS,
    "ScanSource": {"source": "a", "layout": "volumes"},
    "Stage": {"method": {"name": "simsiam"}},
    "SweepConfig": {
        **NAMED,
        "space": {"optimiser.lr": {"choice": [1, 2]}},
        "objective": {"metric": "score"},
        "trials": 2,
    },
    "TableConfig": {**NAMED, "rows": [{"name": "a"}], "reference": "a"},
    "Uniform": {"uniform": [0, 1]},
}
# Intensities and their changes, angles, shifts, what a paper prints, and what another config checks may be below 0.
SIGNED = {
    "Affine.degrees",
    "Affine.padding",
    "Affine.translation",
    "Augmentation.scale",
    "Augmentation.shift",
    "BiasField.coefficients",
    "ColourJitter.clip",
    "Gamma.log_gamma",
    "Integer.integer",
    "Interval.interval",
    "Noise.mean",
    "Ramp.start",
    "Ramp.end",
    "PaperNumbers.mean",
    "PaperNumbers.values",
    "Recipe.window",
    "TableRow.paper_also",
    "Solarise.threshold",
    "Solarise.top",
    "SourceOptions.rescale",
    "Uniform.uniform",
}


def configs() -> dict[str, type[BaseModel]]:
    """Return every config by name: an encoder's, a method's or a task's has its owner's name before it."""
    for path in MODULES:
        if "BaseModel)" in (text := path.read_text()) or "(Frozen" in text or "(Samples)" in text:
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found: dict[str, type[BaseModel]] = {}
    waiting = list(BaseModel.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.split(".")[0] in ("data", "methods", "orchestrator") and not kind.__abstractmethods__:
            found[kind.__qualname__] = kind
    return found


def kinds_of(annotation: Any) -> set[Any]:
    """Return the plain types inside an annotation."""
    inner = get_args(annotation)
    return {annotation} if not inner else {kind for part in inner for kind in kinds_of(part)}


def numeric(kind: type[BaseModel]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        if kinds_of(field.annotation) & {int, float}:
            yield name


def forms(number: float) -> Iterator[Any]:
    """Yield the number in each form that a field may have: alone, in lists, in mappings, and as a key."""
    yield number
    yield from ([number] * length for length in range(1, 7))
    yield from ([0.5, number], [number, 0.5], [1, number], [number, 1])
    yield from ({"a": number}, {"a": [number]})
    if math.isfinite(number):
        yield {int(number): "a"}


CONFIGS = configs()
FIELDS = [(name, field) for name, kind in sorted(CONFIGS.items()) for field in numeric(kind)]


def given(name: str) -> dict[str, Any]:
    own = CONFIGS[name].model_fields
    return REQUIRED.get(name, {"spatial_dims": 3} if "spatial_dims" in own else {})


def accepted(name: str, field: str, number: float) -> list[Any]:
    """Return the forms of a number that a field accepts."""
    kind, found = CONFIGS[name], []
    for value in forms(number):
        try:
            kind.model_validate({**given(name), field: value})
        except ValidationError:
            continue
        found.append(value)
    return found


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_config_is_valid_before_its_numbers_are_changed(name: str) -> None:
    CONFIGS[name].model_validate(given(name))


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=lambda part: part)
def test_a_number_that_is_not_finite_is_refused(name: str, field: str) -> None:
    assert [accepted(name, field, number) for number in (math.nan, math.inf, -math.inf)] == [[], [], []]


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=lambda part: part)
def test_a_negative_number_is_refused_unless_it_can_mean_something(name: str, field: str) -> None:
    assert (accepted(name, field, -1) != []) == (f"{name}.{field}" in SIGNED)


def test_the_configs_of_all_rooms_are_seen() -> None:
    seen = {"Recipe", "Keep", "SourceOptions", "Augmentation", "VoCo.Config", "UNetEncoder.Config", "Crops"}
    assert seen | {"Segmentation.Config", "Experiment", "Scheduler", "TableConfig", "IngestConfig"} <= set(CONFIGS)
    assert {name.split(".")[0] for name in SIGNED} <= set(CONFIGS)
