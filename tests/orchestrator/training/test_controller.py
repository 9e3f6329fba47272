"""The host of Ray Train's controllers: one for all trainings of a process, and a new one once it has died."""

from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from orchestrator.training import controller


@pytest.mark.slow
def test_one_host_serves_all_trainings_until_it_dies_or_ray_train_s_settings_change(
    ray_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = controller._host()
    assert controller._host() is first
    ray.kill(first)
    with pytest.raises(RayActorError):
        ray.get(first.__ray_ready__.remote())
    second = controller._host()
    assert second is not first
    assert ray.get(second.__ray_ready__.remote())
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.7")
    assert controller._host() is not second
