"""Health: measures of the quality of features that need no labels.

Paper: Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by
       Their Rank", ICML 2023; Wang and Isola, "Understanding Contrastive Representation Learning through Alignment
       and Uniformity on the Hypersphere", ICML 2020.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RANK_EPSILON = 1e-7
UNIFORMITY_SCALE = 2.0


def effective_rank(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return RankMe, eq. 1: how many directions the features take up, from 1 to the smaller of n and d."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=RANK_EPSILON) + RANK_EPSILON
    return (-(shares * shares.log()).sum()).exp()


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the mean squared distance of the normalised features of positive pairs, from 0 (alike) to 4."""
    return (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean()


def uniformity(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the log of the mean Gaussian potential of all pairs: 0 where all are alike, lower where they spread."""
    distances = torch.pdist(F.normalize(features.double(), dim=1))
    return distances.square().mul(-UNIFORMITY_SCALE).exp().mean().log()
