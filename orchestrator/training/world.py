"""World: the ranks of a training."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class World:
    """This process's rank, the number of ranks, and the device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
