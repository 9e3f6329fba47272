"""MLP heads of two-view methods: SimSiam's projector and predictor."""

from torch import nn


def projector(in_dim: int, dim: int) -> nn.Sequential:
    """Return SimSiam's three-layer projector: bias-free linears, batch norm on each, the last without affine.

    Paper: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 3.
    """
    return nn.Sequential(
        nn.Linear(in_dim, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(),
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(),
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim, affine=False),
    )


def predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """Return SimSiam's bottleneck predictor: batch norm and ReLU on the hidden layer only."""
    return nn.Sequential(
        nn.Linear(dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, dim),
    )
