"""MLP heads: projectors and predictors of methods that compare embeddings."""

from torch import nn

from methods.parts.precision import Head


def projector(in_dim: int, dim: int) -> Head:
    """Return SimSiam's three-layer projector: bias-free linears, batch norm on each, the last without affine.

    Paper: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 3.
    """
    return normed_projector(in_dim, dim, dim, 3)


def normed_projector(in_dim: int, hidden_dim: int, dim: int, num_layers: int) -> Head:
    """Return bias-free linear layers with batch norm on each, ReLU on all but the last, and the last without affine.

    Reference: facebookresearch/moco-v3 @ 0c5d00a, ``builder.py``: its projector and its predictor.
    """
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(in_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU()]
        in_dim = hidden_dim
    return Head(*layers, nn.Linear(in_dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False))


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


def hidden_projector(in_dim: int, hidden_dim: int, dim: int, last_bias: bool = True) -> Head:
    """Return one hidden layer with batch norm and ReLU: SwAV's and DeepCluster-v2's projector, BYOL's heads.

    Reference: facebookresearch/swav @ 04b8f43, ``resnet50.py``; google-deepmind/deepmind-research @ 500ffd8,
    ``byol/utils/networks.py``, whose last layer has no bias.
    """
    return Head(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, dim, bias=last_bias),
    )


def contrast_projector(in_dim: int, hidden_dim: int, dim: int, norm: bool) -> Head:
    """Return the projector of SimCLR and MoCo v2: one hidden layer with ReLU; with batch norm on both layers or none.

    Reference: google-research/simclr @ be133b3, ``model_util.py``; facebookresearch/moco @ 4397a04, ``builder.py``.
    """
    if not norm:
        return Head(nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
    last = nn.BatchNorm1d(dim)
    last.bias.requires_grad_(False)  # it stays 0
    return Head(
        nn.Linear(in_dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, dim, bias=False),
        last,
    )


def expander(in_dim: int, dim: int, bias: bool) -> Head:
    """Return the three layers of Barlow Twins and VICReg, with batch norm and ReLU on all but the last.

    bias   of the first two layers; the last has none
    Reference: facebookresearch/barlowtwins @ 046eec3 (no bias); facebookresearch/vicreg @ 08c8c0c (bias).
    """
    return Head(
        nn.Linear(in_dim, dim, bias=bias),
        nn.BatchNorm1d(dim),
        nn.ReLU(),
        nn.Linear(dim, dim, bias=bias),
        nn.BatchNorm1d(dim),
        nn.ReLU(),
        nn.Linear(dim, dim, bias=False),
    )
