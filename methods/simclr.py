"""SimCLR: a view of a sample is told from the views of all other samples of the batch by the sample's other view.

Paper:     Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020; a rival in
           Tables 3 to 5 of JSSL (seed 000) and Table 1 of VoCo (seed 002).
Reference: google-research/simclr @ be133b3.
Variants:  each flag is a field of the config and can be set on its own.
                       paper                                  released
           head_norm   none: section 2.1 has two layers,      batch: on both layers, the last without bias
                       with a ReLU between them
           reduction   mean: over the 2B views                sum: of the two views' means, twice as much
           Both have a temperature of 0.1 for photographs of ImageNet; appendix B.9 has 0.5 for CIFAR-10, as has
           MONAI's contrastive loss. The hidden layer is as wide as the features, which in the paper are 2048: here
           ``hidden_dim``. The paper's views show [0.08, 1] of a photograph: ``crops: {size: 224, area: [0.08, 1]}``.
           Candidates are the views of all ranks and chunks. Small crops, which the paper lacks, find each of the
           two views, and are nobody's candidates.
Shapes:    B samples of a rank, N of all ranks, V views, C channels, *s spatial axes, d dimensions.
"""

from math import log
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from data.views.transforms import SWAV
from methods.base import Facts, Losses, Views
from methods.encoders import Encoder
from methods.parts.contrast import batch_logits, contrast_loss, found_part
from methods.parts.mlp import contrast_projector
from methods.parts.precision import full_precision
from methods.parts.ranks import gathered, own_places
from methods.parts.variants import completed_by
from methods.two_views import TwoViewMethod, TwoViewsConfig, embed, mean_over_pairs

_AUGMENT: dict[str, Any] = {"flip_axes": ("W",), "flip_prob": 0.5, "transforms": SWAV}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"augment": _AUGMENT, "head_norm": "none", "reduction": "mean"},
    "released": {"augment": _AUGMENT, "head_norm": "batch", "reduction": "sum"},
}


@full_precision()
def candidate_logits(
    z: Float[Tensor, "b d"],
    targets: Float[Tensor, "n d"],
    others: Float[Tensor, "n d"],
    own: Int64[Tensor, " b"],
    temperature: float,
) -> Float[Tensor, "b m"]:
    """Return eq. 1's logits: all targets, one's own among them, and the other views of all other samples (m = 2n)."""
    of_others = batch_logits(z, others, temperature)
    hidden = torch.zeros_like(of_others).scatter(1, own[:, None], float("-inf"))
    return torch.cat([batch_logits(z, targets, temperature), of_others + hidden], dim=1)


class SimCLR(TwoViewMethod):
    """An encoder and a projector."""

    class Config(TwoViewsConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        head_norm   batch norm on the projector's layers, or none
        reduction   of the losses of the two views
        """

        name: Literal["simclr"] = "simclr"
        variant: Literal["paper", "released"] = "paper"
        augment: Augmentation = Augmentation(**_AUGMENT)
        temperature: float = Field(default=0.1, gt=0)
        hidden_dim: PositiveInt = 2048
        projector_dim: PositiveInt = 128
        head_norm: Literal["none", "batch"] = "none"
        reduction: Literal["mean", "sum"] = "mean"

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.projector = contrast_projector(
            encoder.channels[-1], config.hidden_dim, config.projector_dim, config.head_norm == "batch"
        )

    def loss(self, views: Views) -> Losses:
        """Compute eq. 1. The two views pass together, as in the released code."""
        config = self.config
        z = [F.normalize(one, dim=1) for one in embed(self.encoder, self.projector, views.images, together=True)]
        everyone, own = [gathered(one) for one in z[:2]], own_places(z[0])
        if len(everyone[0]) < 2:
            raise ValueError(
                "batch of 1 sample: it has no other sample to be told from; raise budget.batch_size to 2"
            )

        def logits(view: int, target: int) -> Float[Tensor, "b m"]:
            return candidate_logits(z[view], everyone[target], everyone[1 - target], own, config.temperature)

        loss = mean_over_pairs(lambda view, target: contrast_loss(logits(view, target), own), len(z))
        parts = {
            **found_part(logits(0, 1).detach(), own),
            "positive_cosine": (z[0] * z[1]).sum(1).detach().mean(),
        }
        summands = 2 if config.reduction == "sum" else 1
        # Of equal embeddings, all 2N - 1 candidates are alike.
        of_constant = loss.new_tensor(summands * log(2 * len(everyone[0]) - 1))
        return Losses(summands * loss, parts, of_constant)
