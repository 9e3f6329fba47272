"""BYOL: a network predicts, from one view of a sample, what its moving average makes of the other view.

Paper:     Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020; named in the text of seed 001.
Reference: google-deepmind/deepmind-research @ 4822a45, ``byol/``.
Variants:  teacher_start   paper: a copy; released: random weights, which its comment calls no different
           Both have heads with one hidden layer of 4096 and 256 outputs, an average that keeps 0.996 of itself at
           first and all of itself at the end, along half a cosine, and the sum of the two directions' losses. The
           decay is that of 1000 epochs: 0.99 for 100 and 300. The paper's views show [0.08, 1] of a photograph:
           ``crops: {size: 224, area: [0.08, 1]}``. Small crops, which the paper lacks, predict each of the two.
Shapes:    B samples, V views, C channels, *s spatial axes, d dimensions.
"""

from typing import Any, Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from data.views.transforms import BYOL_FIRST, BYOL_SECOND
from methods.base import Facts, Losses, Progress, Views
from methods.encoders import Encoder
from methods.parts.collapse import collapse_part
from methods.parts.mlp import hidden_projector
from methods.parts.momentum_network import MomentumNetwork
from methods.parts.precision import full_precision
from methods.parts.schedule import Ramp
from methods.parts.teacher import Decay, redraw
from methods.parts.variants import completed_by
from methods.two_views import TARGETS, TwoViewMethod, TwoViewsConfig, embed, mean_over_pairs

_FLIP: dict[str, Any] = {"flip_axes": ("W",), "flip_prob": 0.5}
AUGMENT: dict[str, Any] = {
    "augment": {**_FLIP, "transforms": BYOL_FIRST},
    "augment_other": {**_FLIP, "transforms": BYOL_SECOND},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {**AUGMENT, "teacher_start": "copy"},
    "released": {**AUGMENT, "teacher_start": "random"},
}


@full_precision()
def regression_loss(p: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return eq. 2: the squared distance of prediction and target, both of length 1."""
    return (2 - 2 * F.cosine_similarity(p, target.detach())).mean()


class BYOL(TwoViewMethod):
    """An encoder, a projector and a predictor, and the moving average of the first two."""

    class Config(TwoViewsConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        hidden_dim      of projector and predictor
        teacher_decay   a number, or its schedule; see ``Ramp``
        teacher_start   a copy of the trained network, or random weights
        """

        name: Literal["byol"] = "byol"
        variant: Literal["paper", "released"] = "paper"
        augment: Augmentation = Augmentation(**AUGMENT["augment"])
        augment_other: Augmentation | None = Augmentation(**AUGMENT["augment_other"])
        hidden_dim: PositiveInt = 4096
        projector_dim: PositiveInt = 256
        teacher_decay: Decay = Ramp(start=0.996, end=1.0)
        teacher_start: Literal["copy", "random"] = "copy"

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        dim = config.projector_dim
        self.projector = hidden_projector(encoder.channels[-1], config.hidden_dim, dim, last_bias=False)
        self.predictor = hidden_projector(dim, config.hidden_dim, dim, last_bias=False)
        self.teacher = MomentumNetwork(encoder, self.projector, config.teacher_decay)
        if config.teacher_start == "random":
            redraw(self.teacher)

    def loss(self, views: Views) -> Losses:
        """Compute eq. 2 in both directions. Each view passes alone, through both networks."""
        z = embed(self.encoder, self.projector, views.images)
        targets = [self.teacher(image) for image in views.images[:TARGETS]]
        p = [self.predictor(one) for one in z]
        loss = TARGETS * mean_over_pairs(lambda view, target: regression_loss(p[view], targets[target]), len(p))
        parts = {
            **collapse_part(p[0]),
            "positive_cosine": F.cosine_similarity(z[0].detach(), z[1].detach()).mean(),
        }
        # Collapsed outputs are parallel: a constant reaches the least loss there is.
        return Losses(loss, parts, loss.new_tensor(0.0))

    def after_step(self, progress: Progress) -> None:
        """Move the average."""
        self.teacher.follow(self.encoder, self.projector, progress.share)
