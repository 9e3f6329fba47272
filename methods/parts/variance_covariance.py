"""Variance and covariance: keep the dimensions of embeddings from collapsing, and from saying the same.

Paper:     Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization", ICLR 2022, section 4.1.
Reference: facebookresearch/vicreg @ 08c8c0c; facebookresearch/VICRegL @ 1345219, which treats each place of a map on
           its own.
Shapes:    N samples of all ranks, *p places of a map, if any, d dimensions.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.parts.precision import full_precision

EPSILON = 1e-4  # beside the variance
HINGE_OF_CONSTANT = 1 - EPSILON**0.5


@full_precision()
def variance_hinge(z: Float[Tensor, "n *p d"]) -> Float[Tensor, ""]:
    """Return eq. 1: by how much the deviation of a dimension over the samples is below 1; a mean."""
    return F.relu(1 - torch.sqrt(z.var(dim=0) + EPSILON)).mean()


@full_precision()
def covariance_penalty(z: Float[Tensor, "n *p d"]) -> Float[Tensor, ""]:
    """Return eq. 4: the squares of covariances of different dimensions, divided by d; a mean over places."""
    centred = (z - z.mean(0)).reshape(len(z), -1, z.shape[-1]).transpose(0, 1)
    covariance = centred.transpose(1, 2) @ centred / (len(z) - 1)
    squares = covariance.square()
    return (squares.sum((1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(1)).mean() / z.shape[-1]


def check_several(num_samples: int) -> None:
    """Raise ValueError where a batch has no variance."""
    if num_samples < 2:
        raise ValueError("batch of 1 sample: its embeddings have no variance; raise budget.batch_size to 2")
