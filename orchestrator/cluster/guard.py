"""Guard: one process that frees the CPUs and GPUs of trainings whose own process has died while the job lives on.

Ray keeps a placement group until its job ends. Ray Train has a process for each training, which looks through Ray's
dashboard whether the training's controller lives, and which ends up to 12 s after the training. Here Ray tells one
process of the job, and no dashboard is needed.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, remove_placement_group

NAME = "raydiology-guard"


class PlacementGuard:
    """Waits for the end of any number of controllers."""

    async def hold(self, controller: Any, group: PlacementGroup) -> None:
        """Free a placement group if the controller dies; one that has ended its training answers, and freed it."""
        try:
            await controller.__ray_ready__.remote()
        except RayActorError:
            remove_placement_group(group)


@contextmanager
def guarding() -> Generator[None]:
    """Have a guard while the body runs, in a process that is connected to Ray."""
    # Ray ends the guard once nothing refers to it here; those who find it by its name do not count.
    guard = ray.remote(PlacementGuard).options(name=NAME, num_cpus=0, get_if_exists=True).remote()
    try:
        yield
    finally:
        del guard


def find_guard() -> Any | None:
    """Return the guard of this process's job, or None where it has none."""
    try:
        return ray.get_actor(NAME)
    except ValueError:
        return None
