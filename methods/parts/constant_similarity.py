"""Constant similarity: the best answer of a method that compares crops with bases but does not look at the crops."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TRIED = 9


def least_loss(
    loss: Callable[[Tensor, Tensor, Any], Tensor], shares: Float[Tensor, "b r k"], kind: Any
) -> Float[Tensor, ""]:
    """Return the least loss of one similarity for all of R crops and K bases, of those that are tried.

    ``loss`` takes similarities, the shares by which crops and bases overlap, and its kind. The similarity is at most
    1 / sqrt(K): no direction is closer to all of K bases that are orthogonal.
    """
    closest = torch.linspace(0, shares.shape[2] ** -0.5, TRIED).tolist()
    return torch.stack([loss(torch.full_like(shares, one), shares, kind) for one in closest]).min()
