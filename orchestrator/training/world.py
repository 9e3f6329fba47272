"""World: the ranks of a training, and values that they agree on."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process's rank, the number of ranks, and the device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def mean_over_ranks(scalars: dict[str, Tensor], world: World) -> dict[str, float]:
    """Average named scalars over the ranks; one non-finite value makes the mean non-finite on every rank."""
    stacked = torch.stack([value.detach().float().reshape(()) for value in scalars.values()])
    if world.size > 1:
        dist.all_reduce(stacked)
        stacked /= world.size
    return dict(zip(scalars, stacked.tolist(), strict=True))


def any_rank(flag: bool, world: World) -> bool:
    """Tell every rank whether the flag is set on any rank."""
    if world.size == 1:
        return flag
    total = torch.tensor(int(flag), device=world.device)
    dist.all_reduce(total)
    return bool(total)
