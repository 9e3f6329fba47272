"""Run keys: every field of an experiment changes the keys of what it decides, or is listed as deciding nothing."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel

from methods.base import ADDED, FrozenConfig, decisive
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import expand, merge, resolve
from orchestrator.config.refusal import ConfigError

TREE = {
    "name": "keys",
    "data": {"shards": "shards"},
    "encoder": {"name": "unet", "spatial_dims": 2},
    "method": {"name": "simsiam"},
    "optimiser": {"lr": 0.1},
    "budget": {"epochs": 2, "batch_size": 8},
    "downstream": {
        "shards": "labelled",
        "task": {"name": "segmentation"},
        "num_folds": 5,
        "optimiser": {"lr": 0.1},
        "budget": {"epochs": 2, "batch_size": 8},
    },
    "probe": {"shards": "labelled", "size": 64},
}
# Which keys a field decides, by the beginning of its path. ``scratch`` is a fine-tuning without a pretraining.
DECIDES = {
    "seed": {"pretrain", "finetune", "probe"},
    "start": {"pretrain", "finetune", "probe"},
    "data": {"pretrain", "finetune", "probe"},
    "method": {"pretrain", "finetune", "probe"},
    "optimiser": {"pretrain", "finetune", "probe"},
    "budget": {"pretrain", "finetune", "probe"},
    "encoder": {"pretrain", "finetune", "probe", "scratch"},
    "training": {"pretrain", "finetune", "probe", "scratch"},
    "downstream": {"finetune", "scratch"},
    "probe": {"probe"},
}
# Fields that change no result. The digest of the shards is part of every key, so where they lie need not be.
NO_RESULT = (
    "name",
    "home",
    "data.shards",
    "downstream.shards",
    "downstream.resources",
    "probe.shards",
    "probe.times",
    "health",
    "training.report_every_steps",
    "training.report_every_s",
    "training.checkpoint_every_steps",
    "resources",
    "tracking",
)
# Fields of an optimiser that only some kinds or schedules read.
READ = {
    "momentum": {"name": "sgd", "lr": 0.1, "momentum": 0.8},
    "trust_coefficient": {"name": "lars", "lr": 0.1, "trust_coefficient": 0.02},
    "trust_eps": {"name": "lars", "lr": 0.1, "trust_eps": 0},
    "trust_clip": {"name": "larc", "lr": 0.1, "trust_clip": False},
    "trust_undecayed": {"name": "larc", "lr": 0.1, "trust_undecayed": True},
    "schedule": {"schedule": "poly"},
    "milestone_epochs": {"schedule": "step", "milestone_epochs": [1]},
    "milestone_factor": {"schedule": "step", "milestone_epochs": [1], "milestone_factor": 0.5},
    "poly_power": {"schedule": "poly", "poly_power": 2},
}
# Fields that cannot change alone.
TOGETHER = {
    **{f"optimiser.{field}": {"optimiser": change} for field, change in READ.items()},
    **{f"downstream.optimiser.{field}": {"downstream": {"optimiser": change}} for field, change in READ.items()},
    "encoder.name": {"encoder": {"name": "densenet", "spatial_dims": 2}},
    "optimiser.name": {"optimiser": {"name": "sgd", "lr": 0.1}},
    "downstream.optimiser.name": {"downstream": {"optimiser": {"name": "sgd", "lr": 0.1}}},
    "budget.steps": {"budget": {"epochs": None, "steps": 7}},
    "budget.epochs": {"budget": {"epochs": 3}},
    "downstream.budget.steps": {"downstream": {"budget": {"epochs": None, "steps": 7}}},
    "downstream.resources": {"downstream": {"resources": {"workers": 2}}},
    "downstream.task.scored_class": {"downstream": {"task": {"convention": "single_class", "scored_class": 1}}},
    "downstream.task.regions": {"downstream": {"task": {"regions": {"tumour": [1, 2]}}}},
    **{
        f"{owner}.augment.{field}": expand({f"{owner}.augment.{field}": ["flip", "gamma"]})
        for owner in ("method", "downstream.task")
        for field in ("transforms", "one_of")
    },
    "method.crops.area": {"method": {"crops": {"iou": [0, 1], "area": [0.2, 1]}}},
    "method.augment_other": {"method": {"augment_other": {"flip_prob": 0.1}}},
    "data.weight": {"data": [{"shards": "a", "weight": 3}, {"shards": "b", "weight": 1}]},
    "start": {"start": {"weights": "encoder.safetensors"}},
    "stages": {"method": None, "optimiser": None, "budget": None, "stages": [{"method": {"name": "voco"}}]},
}


def leaves(value: BaseModel, *path: str) -> Iterator[str]:
    for name in type(value).model_fields:
        inner = getattr(value, name)
        yield from leaves(inner, *path, name) if isinstance(inner, BaseModel) else [".".join((*path, name))]


def at(experiment: Experiment, path: str) -> tuple[Any, Any]:
    """Return a field's value and its annotation."""
    *owners, name = path.split(".")
    owner: Any = experiment
    for part in owners:
        owner = getattr(owner, part)
    return getattr(owner, name), type(owner).model_fields[name].annotation


def others(value: Any, annotation: Any) -> Iterator[Any]:
    """Yield values that a field may take instead."""
    for choice in (annotation, *get_args(annotation)):
        yield from (found for found in get_args(choice) if isinstance(found, str))
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value / 2, value - 1, 1e-4)
    elif isinstance(value, str):
        yield from (f"{value}x", "scratch", "classification")
    elif isinstance(value, tuple):
        yield from (value[:1], value[:-1], ["H", "W"])
        if all(isinstance(part, int | float) for part in value):
            yield from ([part * factor for part in value] for factor in (2, 0.5, 0.9))
            yield [value[0], *(part * 2 for part in value[1:])]
    yield from (1, 0.5, "x", [1, 2], ["x"], {"in_channels": 3})


def changed(experiment: Experiment, path: str) -> Experiment:
    """Return the experiment with another value in one field."""
    tree = experiment.model_dump(mode="json")
    value, annotation = at(experiment, path)
    changes = [TOGETHER[path]] if path in TOGETHER else (expand({path: other}) for other in others(value, annotation))
    for change in changes:
        try:
            found = resolve(merge(tree, change))
        except ConfigError:
            continue
        if found.model_dump() != experiment.model_dump():
            return found
    raise AssertionError(f"{path}: no other value is accepted; name one in TOGETHER")


def keys(experiment: Experiment) -> dict[str, str]:
    pretrained = experiment.pretrain_key("digest")
    return {
        "pretrain": pretrained,
        "finetune": experiment.finetune_key(pretrained, "digest"),
        "scratch": experiment.finetune_key("scratch", "digest"),
        "probe": experiment.probe_key(pretrained, "digest"),
    }


def decided_by(path: str) -> set[str]:
    if any(path == listed or path.startswith(f"{listed}.") for listed in NO_RESULT):
        return set()
    return DECIDES["method" if path == "stages" else path.split(".")[0]]


EXPERIMENT = resolve(TREE)
# A change of these makes every finished run be computed again: CHANGELOG has to say so.
KEYS = {
    "pretrain": "bcbd5a8399aa48c8",
    "finetune": "561a7b6d0921b37e",
    "scratch": "b4cad72ba95f56c4",
    "probe": "dfba6c23fc9c6377",
}


OF_PARTS = {"downstream.part"}  # its encoder has no part: see below


@pytest.mark.parametrize("path", [path for path in leaves(EXPERIMENT) if path not in OF_PARTS])
def test_a_field_changes_the_keys_of_what_it_decides_and_no_others(path: str) -> None:
    before, after = keys(EXPERIMENT), keys(changed(EXPERIMENT, path))
    assert {kind for kind in before if before[kind] != after[kind]} == decided_by(path)


def test_the_part_that_is_fine_tuned_changes_the_keys_of_the_fine_tuning_alone() -> None:
    encoder = {"name": "slices", "spatial_dims": 3, "slices": {"name": "unet", "spatial_dims": 2}}
    whole = resolve({**TREE, "encoder": encoder})
    before, after = keys(whole), keys(resolve(whole.model_dump(mode="json"), ["downstream.part=slices"]))
    assert {kind for kind in before if before[kind] != after[kind]} == {"finetune", "scratch"}


def test_what_is_listed_as_changing_no_result_exists() -> None:
    for listed in NO_RESULT:
        at(EXPERIMENT, listed)


class Part(FrozenConfig):
    old: int = 1
    new: Annotated[int, ADDED] = 2


class Whole(FrozenConfig):
    part: Part = Part()
    parts: tuple[Part, ...] = (Part(),)


def test_a_field_that_was_added_later_is_part_of_a_key_only_where_it_is_set() -> None:
    assert decisive(Whole()) == {"part": {"old": 1}, "parts": [{"old": 1}]}
    changed = Whole(part=Part(new=3), parts=(Part(new=4),))
    assert decisive(changed) == {"part": {"old": 1, "new": 3}, "parts": [{"old": 1, "new": 4}]}
    assert decisive(Whole(), {"part"}) == {"parts": [{"old": 1}]}


def test_several_shard_sets_are_part_of_the_keys_by_their_shares_and_filters() -> None:
    def keyed(*sets: dict[str, Any]) -> str:
        return keys(resolve({**TREE, "data": list(sets)}))["pretrain"]

    first, second = {"shards": "a", "weight": 3}, {"shards": "b", "weight": 1}
    assert keyed(first, second) == keyed({**first, "shards": "elsewhere"}, second)
    others = [(second, first), (first, {**second, "weight": 2}), (first, {**second, "split": None}), (first,) * 3]
    assert len({keyed(first, second), *(keyed(*other) for other in others)}) == 5


def test_the_keys_of_an_experiment_stay_as_they_were() -> None:
    assert keys(EXPERIMENT) == KEYS
