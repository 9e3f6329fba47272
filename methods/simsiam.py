"""SimSiam: two views of a sample predict each other's embedding, with the gradient stopped on one side.

Paper:     the thesis on IoU-based positives (seed 001), sections 3, 4.1, 4.2 and 4.5; the method is Chen and He,
           "Exploring Simple Siamese Representation Learning", CVPR 2021.
Reference: dittohed/exploring-ssl-for-ct @ 3d345a6; its heads are lightly 1.4.13's.
Variants:  each is a field of ``augment`` and can be set on its own.
           flip_axes     paper: the X axis, which it says spans back to front (H here); released: both image axes
           shift_prob    paper: no shift of intensity in pretraining; released: 0.75
           noise_sigma   paper: 0.01; released: drawn from [0, 0.01]
           Small crops, which neither has, predict each of the two views.
Shapes:    B samples, C channels, *s spatial axes, d dimensions of projector and predictor.
"""

from typing import Any, Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from methods.base import Facts, Losses, ParamGroup, Views, split_decay
from methods.encoders import Encoder
from methods.parts.collapse import collapse_part
from methods.parts.mlp import predictor, projector
from methods.parts.precision import full_precision
from methods.parts.variants import completed_by
from methods.two_views import TwoViewMethod, TwoViewsConfig, embed, mean_over_pairs

_PAPER: dict[str, Any] = {
    "zoom_prob": 0.75,
    "flip_axes": ("H",),
    "flip_prob": 0.5,
    "rotate_prob": 0.5,
    "scale_prob": 0.75,
    "shift_prob": 0.0,
    "smooth_prob": 0.25,
    "noise_sigma": (0.01, 0.01),
    "noise_prob": 0.25,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"augment": _PAPER},
    "released": {
        "augment": {**_PAPER, "flip_axes": ("H", "W"), "shift_prob": 0.75, "noise_sigma": (0.0, 0.01)},
    },
}


@full_precision()
def negative_cosine(p: Float[Tensor, "b d"], z: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return D of eq. 4.1, whose mean over both directions is the loss; z is a constant."""
    return -F.cosine_similarity(p, z.detach()).mean()


class SimSiam(TwoViewMethod):
    """An encoder, whose last map is averaged over space, a projector and a predictor."""

    class Config(TwoViewsConfig):
        """``variant`` fills in the fields of ``augment`` that are not given; the completed config is kept."""

        name: Literal["simsiam"] = "simsiam"
        variant: Literal["paper", "released"] = "paper"
        augment: Augmentation = Augmentation(**_PAPER)
        projector_dim: PositiveInt = 2048
        predictor_dim: PositiveInt = 512

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.projector = projector(encoder.channels[-1], config.projector_dim)
        self.predictor = predictor(config.projector_dim, config.predictor_dim)

    def loss(self, views: Views) -> Losses:
        """Compute eq. 4.1. Each view passes alone, so that batch norm takes its statistics from one view."""
        z = embed(self.encoder, self.projector, views.images)
        p = [self.predictor(one) for one in z]
        loss = mean_over_pairs(lambda view, target: negative_cosine(p[view], z[target]), len(z))
        parts = {
            **collapse_part(p[0]),
            "positive_cosine": F.cosine_similarity(z[0].detach(), z[1].detach()).mean(),
        }
        # Collapsed outputs are parallel: a constant reaches the least loss there is.
        return Losses(loss, parts, loss.new_tensor(-1.0))

    def param_groups(self) -> list[ParamGroup]:
        """Return all parameters; the predictor's keep a constant learning rate (section 4.5)."""
        budget = [*self.encoder.parameters(), *self.projector.parameters()]
        return [
            *split_decay(p for p in budget if p.requires_grad),
            *split_decay(self.predictor.parameters(), schedule="constant"),
        ]
