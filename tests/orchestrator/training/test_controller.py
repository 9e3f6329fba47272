"""The host of Ray Train's controllers: one for all trainings of a process, and a new one once it has died."""

from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from orchestrator.training import controller


@pytest.mark.slow
def test_one_host_serves_all_trainings_of_a_process_and_is_started_anew_once_it_has_died(ray_cluster: Path) -> None:
    first = controller._host()
    assert controller._host() is first
    ray.kill(first)
    with pytest.raises(RayActorError):
        ray.get(first.__ray_ready__.remote())
    second = controller._host()
    assert second is not first
    assert ray.get(second.__ray_ready__.remote())
