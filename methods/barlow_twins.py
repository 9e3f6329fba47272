"""Barlow Twins: over a batch, each dimension of one view's embedding correlates with the same one of the other view.

Paper:     Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021; a rival in
           Tables 3 to 5 of JSSL (seed 000).
Reference: facebookresearch/barlowtwins @ 046eec3.
Variants:  lambda_redundancy   paper: 0.005; released: 0.0051
           Eq. 2 divides by the two deviations. As released, batch norm without affine does so, with 1e-5 beside the
           variance. The paper's views show [0.08, 1] of a photograph: ``crops: {size: 224, area: [0.08, 1]}``. Small
           crops, which the paper lacks, are compared with each of the two views; the loss is the mean over pairs.
Shapes:    B samples of a rank, N of all ranks, V views, C channels, *s spatial axes, d dimensions.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from data.views.augmentation import Augmentation
from methods.base import Facts, Losses, Views
from methods.byol import AUGMENT
from methods.encoders import Encoder
from methods.parts.mlp import expander
from methods.parts.precision import Head, full_precision
from methods.parts.ranks import number_of_ranks, sum_over_all_ranks
from methods.parts.variants import completed_by
from methods.two_views import TARGETS, TwoViewMethod, TwoViewsConfig, embed

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {**AUGMENT, "lambda_redundancy": 0.005},
    "released": {**AUGMENT, "lambda_redundancy": 0.0051},
}


@full_precision()
def correlation(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"]) -> Float[Tensor, "d d"]:
    """Return eq. 2 of standardised embeddings: the correlation of all dimensions over the samples of all ranks."""
    return sum_over_all_ranks(first.T @ second) / (len(first) * number_of_ranks())


@full_precision()
def correlation_terms(c: Float[Tensor, "d d"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the sums of eq. 1: of the squares of 1 - C on the diagonal, and of C beside it."""
    diagonal = c.diagonal()
    return (1 - diagonal).square().sum(), c.square().sum() - diagonal.square().sum()


class BarlowTwins(TwoViewMethod):
    """An encoder, a projector, and a batch norm that standardises embeddings."""

    class Config(TwoViewsConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        projector_dim       width of the embeddings and of the hidden layers
        lambda_redundancy   the paper's lambda
        """

        name: Literal["barlow_twins"] = "barlow_twins"
        variant: Literal["paper", "released"] = "paper"
        augment: Augmentation = Augmentation(**AUGMENT["augment"])
        augment_other: Augmentation | None = Augmentation(**AUGMENT["augment_other"])
        projector_dim: PositiveInt = 8192
        lambda_redundancy: float = Field(default=0.005, ge=0)

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.projector = expander(encoder.channels[-1], config.projector_dim, bias=False)
        self.standardise = Head(nn.BatchNorm1d(config.projector_dim, affine=False, track_running_stats=False))

    def loss(self, views: Views) -> Losses:
        """Compute eq. 1. Each view passes alone."""
        z = [self.standardise(one) for one in embed(self.encoder, self.projector, views.images)]
        # The correlation of a pair is, transposed, that of the pair the other way round.
        pairs = [(0, 1), *((target, view) for target in range(TARGETS) for view in range(TARGETS, len(z)))]
        weights = z[0].new_tensor([1.0, *[0.5] * (len(pairs) - 1)])
        terms = torch.stack([torch.stack(correlation_terms(correlation(z[a], z[b]))) for a, b in pairs])
        invariance, redundancy = (weights[:, None] * terms).sum(0) / weights.sum()
        dim = self.config.projector_dim
        parts = {
            "invariance": invariance.detach() / dim,
            "redundancy": redundancy.detach() / max(1, dim * (dim - 1)),
        }
        loss = invariance + self.config.lambda_redundancy * redundancy
        # A constant, less its mean, is 0 and correlates with nothing.
        return Losses(loss, parts, loss.new_tensor(float(dim)))
