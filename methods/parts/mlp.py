"""MLP heads: SimSiam's projector and predictor, VoCo's and SwAV's projectors."""

from torch import nn

from methods.parts.precision import Head


def projector(in_dim: int, dim: int) -> Head:
    """Return SimSiam's three-layer projector: bias-free linears, batch norm on each, the last without affine.

    Paper: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 3.
    """
    return Head(
        nn.Linear(in_dim, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(),
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(),
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim, affine=False),
    )


def predictor(dim: int, hidden_dim: int) -> Head:
    """Return SimSiam's bottleneck predictor: batch norm and ReLU on the hidden layer only."""
    return Head(
        nn.Linear(dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, dim),
    )


def plain_projector(in_dim: int, dim: int) -> Head:
    """Return VoCo's three-layer projector: batch norm without affine or running statistics on all but the last.

    Weights are normal with deviation 0.02, biases 0.
    Reference: the code behind VoCo's CVPR numbers; Luffy03/VoCo @ ba7b7bd keeps torch's own initial weights.
    """
    layers = Head(
        nn.Linear(in_dim, dim),
        nn.BatchNorm1d(dim, affine=False, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(dim, dim),
        nn.BatchNorm1d(dim, affine=False, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(dim, dim),
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return layers


def hidden_projector(in_dim: int, hidden_dim: int, dim: int) -> Head:
    """Return the projector of SwAV and DeepCluster-v2: one hidden layer with batch norm and ReLU.

    Reference: facebookresearch/swav @ 04b8f43, ``resnet50.py``.
    """
    return Head(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, dim),
    )
