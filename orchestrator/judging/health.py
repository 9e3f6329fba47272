"""Watch: measure an encoder at intervals while it is pretrained, with or without labels."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from data.shards.index import ShardSet
from methods.base import Method
from methods.parts.collapse import collapse_coefficient
from methods.parts.flat_map import mean_features
from methods.parts.health import alignment, effective_rank, uniformity
from orchestrator.training.samples import batches_of
from orchestrator.training.world import World

# Views are the same at every measurement in every run: only the encoder changes.
VIEW_SEED = 0


@dataclass(frozen=True)
class Evenly:
    """A number of times over the budget, evenly spaced, the last one at its end."""

    times: int
    total_steps: int

    def due(self, step: int) -> bool:
        """Tell whether ``step`` completes another part of the budget."""
        return step * self.times // self.total_steps > (step - 1) * self.times // self.total_steps


@dataclass(frozen=True)
class HealthWatch:
    """Label-free health of the encoder's last map, averaged over space, on one view of each of some samples.

    If a method's first two views are a positive pair, their alignment is measured too.
    """

    samples: tuple[tuple[ShardSet, Int[np.ndarray, " _"]], ...]
    rhythm: Evenly

    def due(self, step: int) -> bool:
        return self.rhythm.due(step)

    @torch.no_grad()
    def run(self, method: Method, world: World) -> dict[str, float]:
        """Return ``health/...``, equal on all ranks."""
        kept: list[list[Tensor]] = [[], []] if method.positives else [[]]
        for shards, row_ids in self.samples:
            for batch in batches_of(shards, row_ids, world, method.needs):
                images = method.views(batch, batch.rng(VIEW_SEED)).images
                for part, image in zip(kept, images, strict=False):
                    part.append(mean_features(method.encoder, image).cpu())
        first, *second = (from_all_ranks(part, world) for part in kept)
        metrics = {
            "health/effective_rank": effective_rank(first),
            "health/collapse": collapse_coefficient(first),
            "health/uniformity": uniformity(first),
        }
        if second:
            metrics["health/alignment"] = alignment(first, second[0])
        return {name: float(value) for name, value in metrics.items()}


def from_all_ranks(parts: list[Tensor], world: World) -> Tensor:
    """Concatenate the parts of all ranks in rank order; they lie on the CPU."""
    gathered = [parts] * world.size
    if world.size > 1:
        dist.all_gather_object(gathered, parts)
    return torch.cat([part for own in gathered for part in own])


def spread_out(row_ids: Int[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    """Return at most this many of the rows, evenly spaced."""
    return row_ids[np.linspace(0, len(row_ids) - 1, min(most, len(row_ids))).round().astype(np.int64)]
