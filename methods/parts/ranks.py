"""Ranks: sums and rows over all of them, through which gradients flow back to the rank that they came from."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks; the gradient of each rank's summand is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: object, summand: Tensor) -> Tensor:
        total = summand.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_over_ranks(summand: Tensor) -> Tensor:
    """Return the sum over the ranks of a process group, which there must be."""
    total = _SumOverRanks.apply(summand)
    assert isinstance(total, Tensor)
    return total


def from_next_sample(rows: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Return each sample's successor in the batch over all ranks, the first after the last; ranks hold equal parts.

    Raises ValueError where the batch is a single sample.
    """
    everyone, first = rows, 0
    if dist.is_initialized() and dist.get_world_size() > 1:
        first = dist.get_rank() * len(rows)
        mine = rows.new_zeros(dist.get_world_size() * len(rows), rows.shape[1])
        everyone = sum_over_ranks(
            mine.index_copy(0, torch.arange(first, first + len(rows), device=rows.device), rows)
        )
    if len(everyone) < 2:
        raise ValueError("batch of 1 sample: there is no other one to tell it from; raise budget.batch_size to 2")
    return everyone.roll(-1, 0)[first : first + len(rows)]
