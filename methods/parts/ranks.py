"""Ranks: gather sums and rows over all ranks.

Losses use the functions through which gradients flow back to the rank that they came from. Logged values use the
others: they are values of the whole batch, whatever the number of ranks.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, Shaped
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks; the gradient of each rank's summand is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: object, summand: Tensor) -> Tensor:
        total = summand.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].clone()
        dist.all_reduce(total)
        return total


def sum_over_ranks(summand: Tensor) -> Tensor:
    """Return the sum over the ranks of a process group, which must exist."""
    total = _SumOverRanks.apply(summand)
    assert isinstance(total, Tensor)
    return total


def sum_over_all_ranks(summand: Tensor) -> Tensor:
    """Return the sum over the ranks, through which gradients flow; the summand itself where there is one rank."""
    return sum_over_ranks(summand) if _several() else summand


def rows_of_all_ranks(rows: Shaped[Tensor, "b *d"]) -> Shaped[Tensor, "n *d"]:
    """Return the rows of all ranks, in the order of the ranks, without gradients; all ranks hold the same number."""
    rows = rows.detach()
    if not _several():
        return rows
    by_rank = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(by_rank, rows.contiguous())
    return torch.cat(by_rank)


def gathered(rows: Float[Tensor, "b *d"]) -> Float[Tensor, "n *d"]:
    """Return the rows of all ranks, in the order of the ranks; gradients flow back to the rank they came from.

    All ranks hold the same number of rows.
    """
    if not _several():
        return rows
    everyone = rows.new_zeros(dist.get_world_size() * len(rows), *rows.shape[1:])
    return sum_over_ranks(everyone.index_copy(0, own_places(rows), rows))


def own_places(rows: Shaped[Tensor, "b *d"]) -> Int64[Tensor, " b"]:
    """Return where this rank's rows stand among those of all ranks."""
    first = dist.get_rank() * len(rows) if _several() else 0
    return torch.arange(first, first + len(rows), device=rows.device)


def number_of_ranks() -> int:
    """Return how many ranks train together."""
    return dist.get_world_size() if _several() else 1


def total_over_ranks(summand: Shaped[Tensor, "*s"]) -> Shaped[Tensor, "*s"]:
    """Return the sum over all ranks, without gradients."""
    total = summand.detach()
    if _several():
        total = total.clone()
        dist.all_reduce(total)
    return total


def largest_over_ranks(values: Shaped[Tensor, "*s"]) -> Shaped[Tensor, "*s"]:
    """Return the largest value over all ranks, element by element, without gradients."""
    largest = values.detach()
    if _several():
        largest = largest.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def share_over_ranks(name: str, part: Tensor, whole: Tensor) -> dict[str, Tensor]:
    """Return the share of ``part`` in ``whole`` over all ranks, under its name; nothing where ``whole`` is 0."""
    counts = total_over_ranks(torch.stack([part.detach(), whole.detach()]).double())
    # A dry run's tensors have shapes and no values.
    return {name: counts[0] / counts[1]} if counts.is_meta or counts[1] > 0 else {}


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def from_next_sample(rows: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Return each sample's successor in the batch over all ranks, the first after the last; ranks hold equal parts.

    Raises ValueError where the batch is a single sample.
    """
    everyone = gathered(rows)
    if len(everyone) < 2:
        raise ValueError("batch of 1 sample: it has no other sample to differ from; raise budget.batch_size to 2")
    return everyone.roll(-1, 0)[own_places(rows)]


def next_samples(rows: Shaped[Tensor, "b *d"]) -> Shaped[Tensor, "b *d"]:
    """Return each sample's successor as ``from_next_sample`` does, without gradients, of rows of any size."""
    rows = rows.detach()
    if not _several():
        return rows.roll(-1, 0)
    firsts = rows_of_all_ranks(rows[:1])
    following = (dist.get_rank() + 1) % len(firsts)
    return torch.cat([rows[1:], firsts[following : following + 1]])


def share_of(count: int) -> slice:
    """Return this rank's part of ``count`` rows, divided as ``torch.tensor_split`` divides them."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if _several() else (1, 0)
    size, larger = divmod(count, ranks)
    first = rank * size + min(rank, larger)
    return slice(first, first + size + (rank < larger))


def own_of(everyone: Shaped[Tensor, "n *d"]) -> Shaped[Tensor, "b *d"]:
    """Return this rank's rows of what ``rows_of_all_ranks`` has put together."""
    return everyone.chunk(number_of_ranks())[dist.get_rank() if _several() else 0]
