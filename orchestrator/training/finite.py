"""Finite: a loss or gradient that is not finite ends a training before the optimiser moves."""

import torch.distributed as dist

from data.views.batch import Batch
from orchestrator.training.world import World


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is not finite; the optimiser has not moved."""


def refuse_non_finite(values: dict[str, float], step: int, batch: Batch, world: World) -> None:
    """Raise NonFiniteError, on all ranks alike, if a value is not finite; name the samples of the whole batch."""
    bad = [name for name, value in values.items() if not abs(value) < float("inf")]
    if not bad:
        return
    ids = [list(batch.sample_ids)] * world.size
    if world.size > 1:
        dist.all_gather_object(ids, list(batch.sample_ids))
    named = [sample for part in ids for sample in part]
    shown = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
    raise NonFiniteError(
        f"step {step}: {bad[0]} is {values[bad[0]]}; the optimiser has not moved. The batch held samples {shown}. "
        "Lower optimiser.lr, or set optimiser.clip_norm"
    )
