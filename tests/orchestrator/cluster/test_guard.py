"""The guard frees what the controller of a training held that died, and nothing else: real Ray, real kills."""

import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group

from orchestrator.cluster.guard import find_guard, guarding
from tests.waiting import wait_for

pytestmark = pytest.mark.slow


class Controller:
    """Holds a CPU, as the controller of a training does."""

    def train(self, name: str) -> None:
        group = placement_group([{"CPU": 1}], name=name)
        ray.get(group.ready())
        guard = find_guard()
        assert guard is not None
        guard.hold.remote(ray.get_runtime_context().current_actor, group)
        threading.Event().wait()


class Trial:
    """Starts a controller, and takes it along when it dies."""

    def __init__(self, name: str) -> None:
        self.controller = ray.remote(num_cpus=0)(Controller).remote()
        self.controller.train.remote(name)


def state_of(name: str) -> str:
    return next((str(one["state"]) for one in ray.util.placement_group_table().values() if one["name"] == name), "")


def reach(name: str, state: str) -> None:
    wait_for(lambda: state_of(name) == state or None)


def test_what_killed_trials_held_is_freed_and_what_others_hold_is_not(ray_cluster: Path) -> None:
    trial: Any = ray.remote(num_cpus=0)(Trial)
    with guarding():
        first, second = trial.remote("first"), trial.remote("second")
        reach("first", "CREATED")
        reach("second", "CREATED")
        ray.kill(first)
        reach("first", "REMOVED")
        assert state_of("second") == "CREATED"
        ray.kill(second)
        reach("second", "REMOVED")
    wait_for(lambda: find_guard() is None or None)
