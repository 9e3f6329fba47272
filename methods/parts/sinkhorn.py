"""Sinkhorn: soft assignments of a batch to prototypes, so that all prototypes are used equally.

Paper:     Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
           section 3.1; Cuturi, "Sinkhorn Distances", NIPS 2013.
Reference: facebookresearch/vissl, ``swav_loss.py``, subtracts the greatest score of all ranks before it takes the
           exponential; facebookresearch/swav does not, and scores of 16 overflow. Even with the maximum subtracted, a
           prototype whose scores are all 5 below the greatest vanishes in float32 (exp(-5 / 0.05) is 4e-44), and is
           divided by 0. So the iterations run on logarithms here, each prototype less its own maximum.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from methods.parts.precision import at_least_float32, full_precision
from methods.parts.ranks import largest_over_ranks, total_over_ranks


@full_precision()
@torch.no_grad()
def sinkhorn(scores: Float[Tensor, "*p b k"], epsilon: float, iterations: int) -> Float[Tensor, "*p b k"]:
    """Return the codes of this rank's b embeddings, computed together with those of all ranks.

    Each code sums to 1. ``p`` counts problems that are solved apart. Without gradients, at least in float32.
    """
    logs = at_least_float32(scores) / epsilon
    for _ in range(iterations):
        logs = logs - _log_totals(logs)
        logs = logs.log_softmax(-1)
    return logs.exp()


def _log_totals(logs: Float[Tensor, "*p b k"]) -> Float[Tensor, "*p 1 k"]:
    """Return the logarithm of what each prototype is assigned by all embeddings of all ranks."""
    peaks = largest_over_ranks(logs.amax(-2, keepdim=True))
    return peaks + total_over_ranks((logs - peaks).exp().sum(-2, keepdim=True)).log()
