"""VICReg: embeddings of two views are close, while each dimension varies over the batch, and on its own.

Paper:     Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
           ICLR 2022.
Reference: facebookresearch/vicreg @ 08c8c0c.
Variants:  variance_terms   paper: sum: eq. 6 adds the terms of the two views; released: mean. lightly does so, too
           distance         squared: eq. 5 adds the squares of all dimensions; the paper's own algorithm 1 and the
                            released code take their mean, and so do both variants here: at 8192 dimensions, eq. 5
                            would outweigh the other terms
           Covariance terms of the two views are added in both. The paper's views show [0.08, 1] of a photograph:
           ``crops: {size: 224, area: [0.08, 1]}``. With small crops, as in VICRegL, the distance is a mean over the
           pairs with each of the two views, and a sum over views is twice their mean.
Shapes:    B samples of a rank, N of all ranks, V views, C channels, *s spatial axes, d dimensions.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from data.views.augmentation import Augmentation
from methods.base import Facts, Losses, Views
from methods.byol import AUGMENT
from methods.encoders import Encoder
from methods.parts.mlp import expander
from methods.parts.precision import full_precision
from methods.parts.ranks import gathered
from methods.parts.variance_covariance import (
    HINGE_OF_CONSTANT,
    check_several,
    covariance_penalty,
    variance_hinge,
)
from methods.parts.variants import completed_by
from methods.two_views import TARGETS, TwoViewMethod, TwoViewsConfig, embed, mean_over_pairs

Distance = Literal["mean", "squared"]
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {**AUGMENT, "variance_terms": "sum"},
    "released": {**AUGMENT, "variance_terms": "mean"},
}


@full_precision()
def invariance(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], distance: Distance) -> Float[Tensor, ""]:
    """Return eq. 5, or its mean over dimensions."""
    squares = (first - second).square()
    return squares.mean() if distance == "mean" else squares.sum(1).mean()


class VICReg(TwoViewMethod):
    """An encoder and an expander."""

    class Config(TwoViewsConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        projector_dim       width of the embeddings and of the hidden layers
        lambda_invariance   the paper's lambda
        lambda_variance     the paper's mu
        lambda_covariance   the paper's nu
        variance_terms      over views
        distance            of embeddings, over dimensions: mean, or the squared distance
        """

        name: Literal["vicreg"] = "vicreg"
        variant: Literal["paper", "released"] = "paper"
        augment: Augmentation = Augmentation(**AUGMENT["augment"])
        augment_other: Augmentation | None = Augmentation(**AUGMENT["augment_other"])
        projector_dim: PositiveInt = 8192
        lambda_invariance: float = Field(default=25.0, ge=0)
        lambda_variance: float = Field(default=25.0, ge=0)
        lambda_covariance: float = Field(default=1.0, ge=0)
        variance_terms: Literal["sum", "mean"] = "sum"
        distance: Distance = "mean"

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.projector = expander(encoder.channels[-1], config.projector_dim, bias=True)

    def loss(self, views: Views) -> Losses:
        """Compute eq. 6. Each view passes alone."""
        config = self.config
        z = embed(self.encoder, self.projector, views.images)
        everyone = [gathered(one) for one in z]
        check_several(len(everyone[0]))
        near = mean_over_pairs(lambda view, target: invariance(z[view], z[target], config.distance), len(z))
        variance = torch.stack([variance_hinge(one) for one in everyone]).mean()
        covariance = torch.stack([covariance_penalty(one) for one in everyone]).mean()
        weight = config.lambda_variance * (TARGETS if config.variance_terms == "sum" else 1)
        parts = {
            "invariance": near.detach(),
            "variance": variance.detach(),
            "covariance": covariance.detach(),
        }
        loss = config.lambda_invariance * near + weight * variance + config.lambda_covariance * TARGETS * covariance
        # Of equal embeddings, all but the variance is as it should be.
        return Losses(loss, parts, loss.new_tensor(weight * HINGE_OF_CONSTANT))
