"""The host of Ray Train's controllers, and what the processes of Ray are told before they import it."""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from orchestrator.cluster.guard import guarding
from orchestrator.config.files import resolve
from orchestrator.history import steps
from orchestrator.runs.pretrain import pretrain
from orchestrator.stop import RunError
from orchestrator.training import controller
from tests.experiments import tiny_experiment
from tests.shardsets import write_slices
from tests.waiting import wait_for, wait_for_step

STEPS = 40


def is_dead(host: Any) -> bool:
    try:
        return not ray.get(host.__ray_ready__.remote())
    except RayActorError:
        return True


def callbacks() -> set[str]:
    """Name what Ray Train calls in a training that this process starts."""
    trainer = controller.Trainer(print)
    return {type(one).__name__ for one in trainer._create_default_callbacks()}


@pytest.mark.slow
def test_a_process_of_the_cluster_has_its_guard_told_or_else_ray_train_s_cleaner_and_a_driver_has_neither(
    ray_cluster: Path,
) -> None:
    task: Any = ray.remote(num_cpus=0)(callbacks)
    told, cleaner = "GuardedGroups", "PlacementGroupCleanerCallback"
    assert ray.get(task.remote()) & {told, cleaner} == {cleaner}
    with guarding():
        assert ray.get(task.remote()) & {told, cleaner} == {told}
        assert callbacks() & {told, cleaner} == set()


@pytest.mark.slow
def test_one_host_serves_all_trainings_until_it_dies_or_ray_train_s_settings_change(
    ray_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = controller._host()
    assert controller._host() is first
    ray.kill(first)
    wait_for(lambda: is_dead(first))  # which is known some time after it was asked for
    second = controller._host()
    assert second is not first
    assert ray.get(second.__ray_ready__.remote())
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.7")
    assert controller._host() is not second


@pytest.mark.slow
def test_processes_of_ray_look_for_garbage_as_seldom_as_this_one(ray_cluster: Path) -> None:
    found = ray.get(ray.remote(lambda: gc.get_threshold()).remote())
    assert found == gc.get_threshold()
    assert found[0] > 700, "Python's own"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_training_whose_controller_dies_ends_in_words_and_the_same_process_goes_on_with_it(
    ray_cluster: Path, tmp_path: Path
) -> None:
    training = {"report_every_steps": 2, "checkpoint_every_steps": 10}
    shards = write_slices(tmp_path / "slices")
    experiment = resolve(tiny_experiment("dies", shards, tmp_path / "runs", STEPS, training=training))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(pretrain, experiment)
        history = wait_for_step(tmp_path / "runs", 12)
        (host,) = controller._hosts.values()
        ray.kill(host)
        said = r"stage pretrain: the process of Ray Train's controller died: .* goes on from the last checkpoint"
        with pytest.raises(RunError, match=said):
            running.result(120)
    assert len(steps(history.parent, "pretrain")) < STEPS
    pretrain(experiment)
    assert [line["step"] for line in steps(history.parent, "pretrain")] == [*range(STEPS)]
