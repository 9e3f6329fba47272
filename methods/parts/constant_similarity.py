"""Constant similarity: the best answer of a method that compares crops with bases but does not look at the crops."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

TRIED = 9


def least_loss(
    loss: Callable[[Float[Tensor, "b r k"]], Float[Tensor, ""]], shares: Float[Tensor, "b r k"]
) -> Float[Tensor, ""]:
    """Return the least loss of one similarity for all of R crops and K bases, of those that are tried.

    It is at most 1 / sqrt(K): no direction is closer to all of K bases that are orthogonal.
    """
    closest = torch.linspace(0, shares.shape[2] ** -0.5, TRIED).tolist()
    return torch.stack([loss(torch.full_like(shares, one)) for one in closest]).min()
