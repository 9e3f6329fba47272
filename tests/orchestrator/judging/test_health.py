"""Measurements of an encoder while it is pretrained: when, on which samples, and equal for any number of ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.shards.index import ShardSet
from data.views.batch import Batch
from methods import METHODS
from orchestrator.config.experiment import Experiment
from orchestrator.config.files import resolve
from orchestrator.feed import stream
from orchestrator.judging.health import Evenly, HealthWatch, spread_out
from orchestrator.runs import pretrain
from orchestrator.runs.course import Course
from orchestrator.training.loop import train
from orchestrator.training.world import World
from tests.batches import FACTS
from tests.experiments import tiny_experiment
from tests.shardsets import write_slices

ALONE = World(0, 1, torch.device("cpu"))
STEPS = 6
ROTATION = {"name": "rotation", "side": 32, "hidden_dims": [8], "dropout": 0.0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_slices(tmp_path_factory.mktemp("slices"))


def experiment_of(shards: str, *overrides: str, **fields: Any) -> Experiment:
    return resolve(tiny_experiment("watch", shards, Path("runs"), STEPS, **fields), overrides)


def entries_of(experiment: Experiment) -> list[dict[str, Any]]:
    """Pretrain in this process, as a worker does; return what was reported of each step."""
    course = Course.open(experiment)
    entries: list[dict[str, Any]] = []

    def batches(first_step: int) -> Iterator[Batch]:
        return stream.local_batches(course.feed, rank=0)

    def report(metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        entries.extend(metrics["history"])

    train(pretrain.build_trainee(experiment, 0, {}), course.plan, batches, ALONE, report)
    return entries


@pytest.mark.slow
def test_health_is_logged_at_even_distances_and_at_the_end(shards: str) -> None:
    entries = entries_of(experiment_of(shards, "health.times=3"))
    watched = [entry for entry in entries if "health/effective_rank" in entry]
    assert [entry["step"] + 1 for entry in watched] == [2, 4, 6]
    names = {name for name in watched[0] if name.startswith("health/")}
    assert names == {f"health/{name}" for name in ("effective_rank", "collapse", "uniformity", "alignment")}
    assert all(1 <= entry["health/effective_rank"] <= 16 for entry in watched)


@pytest.mark.slow
def test_watching_changes_nothing_of_the_training(shards: str) -> None:
    watched, unwatched = (entries_of(experiment_of(shards, f"health.times={times}")) for times in (6, 0))
    assert [entry["loss"] for entry in watched] == [entry["loss"] for entry in unwatched]
    assert not any(name.startswith("health/") for entry in unwatched for name in entry)


@pytest.mark.slow
def test_a_method_without_positive_pairs_has_no_alignment(shards: str) -> None:
    last = entries_of(experiment_of(shards, method=ROTATION))[-1]
    assert "health/alignment" not in last
    assert last["health/effective_rank"] > 1


@pytest.mark.slow
def test_health_of_three_ranks_is_that_of_one(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ShardSet.open(shards)
    experiment = experiment_of(shards)
    method = METHODS["simsiam"](experiment.pretraining[0].method, pretrain.build_encoder(experiment), FACTS).eval()
    watch = HealthWatch(((opened, opened.select("train").row_ids),), Evenly(1, 1))
    alone = watch.run(method, ALONE)
    ranks: list[list[torch.Tensor]] = []

    def note(parts: list[torch.Tensor], world: World) -> torch.Tensor:
        ranks[world.rank].append(torch.cat(parts))
        return ranks[world.rank][-1]

    monkeypatch.setattr("orchestrator.judging.health.from_all_ranks", note)
    for rank in range(3):
        ranks.append([])
        watch.run(method, World(rank, 3, torch.device("cpu")))
    together = iter([torch.cat(view) for view in zip(*ranks, strict=True)])
    monkeypatch.setattr("orchestrator.judging.health.from_all_ranks", lambda parts, world: next(together))
    assert watch.run(method, ALONE) == pytest.approx(alone, rel=1e-5)


def test_the_rhythm_divides_any_budget_evenly() -> None:
    assert [step for step in range(1, 101) if Evenly(4, 100).due(step)] == [25, 50, 75, 100]
    assert [step for step in range(1, 8) if Evenly(10, 7).due(step)] == [1, 2, 3, 4, 5, 6, 7]
    assert [step for step in range(1, 11) if Evenly(3, 10).due(step)] == [4, 7, 10]


def test_samples_are_spread_over_all_rows() -> None:
    assert spread_out(np.arange(100, 200), 5).tolist() == [100, 125, 150, 174, 199]
    assert spread_out(np.arange(3), 5).tolist() == [0, 1, 2]
