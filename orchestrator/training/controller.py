"""Controller: one process beside each that starts trainings, in which Ray Train's controllers run one after another.

Ray Train starts a process for each controller, which first imports PyTorch and Ray. The trials of a table, the stages
of a run and its fine-tuning follow one another, and so do their controllers.
"""

import asyncio
from collections.abc import Hashable
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.callback import RayTrainCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster import connection
from orchestrator.cluster.guard import find_guard


class Trainer(TorchTrainer):
    """A trainer that starts fewer processes: a worker waits for each of them to start.

    None hands out data sets where there are none. None frees what the training holds should it die: for a driver Ray
    does, and for a process of the cluster the job's guard. Its controller runs in a process that is there already.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        idle: list[type[RayTrainCallback]] = []
        if not self.datasets:
            idle.append(DatasetsCallback)
        guard = find_guard() if connection.in_worker() else None
        if guard is not None or not connection.in_worker():
            idle.append(PlacementGroupCleanerCallback)
        kept = [one for one in super()._create_default_callbacks() if not isinstance(one, tuple(idle))]
        return kept if guard is None else [*kept, GuardedGroups(guard)]

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Result:
        result: Any = ray.get(_host().run.remote(controller_init_kwargs))
        return result


class GuardedGroups(WorkerGroupCallback):
    """Tells a guard what the workers of a controller hold."""

    def __init__(self, guard: Any) -> None:
        self._guard = guard

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Name the workers' placement group, and the controller whose end is to be waited for."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._guard.hold.remote(ray.get_runtime_context().current_actor, group)


class ControllerHost:
    """Runs one controller after another."""

    def run(self, settings: dict[str, Any]) -> Result:
        """Run a controller to the end of its training."""
        controller = TrainController(**settings)
        asyncio.run(controller.run())
        return controller.get_result()


_hosts: dict[Hashable, Any] = {}


def _host() -> Any:
    """Return this process's host on the Ray that it is connected to, started anew if it has died.

    A process reads Ray Train's settings from its environment once, so a host serves trainings of equal settings.
    """
    context, settings = ray.get_runtime_context(), get_env_vars_to_propagate()
    key = context.get_session_name(), context.get_job_id(), tuple(sorted(settings.items()))
    if key in _hosts:
        try:
            ray.get(_hosts[key].__ray_ready__.remote())
        except RayActorError:
            del _hosts[key]
    if key not in _hosts:
        _hosts.clear()  # one without a handle ends
        here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)  # it writes the history
        _hosts[key] = (
            ray.remote(ControllerHost)
            .options(num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": settings})
            .remote()
        )
    return _hosts[key]
