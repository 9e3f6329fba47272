"""MoCo v3: a network predicts, from one view of a sample, its moving average's key of the other view in the batch.

Paper:     Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021; a rival in
           Table 6 of JSSL (seed 000) and in Tables 1 to 5 of VoCo (seed 002).
Reference: facebookresearch/moco-v3 @ 0c5d00a; views of @ 02655ae.
Variants:  projector_layers   paper: 3; released: 3 for transformers and 2 for ResNets, which ``released`` means here
           temperature        paper: 0.2; released: 1, its default, for ResNets
           Both multiply the cross-entropy by twice the temperature, and have the sum of the two directions. The
           average keeps 0.99 of itself at first and all of itself at the end, along half a cosine. The paper
           freezes the first layer of its transformers; here everything learns. The paper's views show [0.08, 1] of a
           photograph: ``crops: {size: 224, area: [0.08, 1]}``. Small crops, which the paper lacks, find each of
           the two views. Keys are those of all ranks and chunks.
Shapes:    B samples of a rank, N of all ranks, V views, C channels, *s spatial axes, d dimensions.
"""

from math import log
from typing import Any, Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from methods.base import Facts, Losses, Progress, Views
from methods.byol import AUGMENT
from methods.encoders import Encoder
from methods.parts.collapse import collapse_part
from methods.parts.contrast import batch_logits, contrast_loss, found_part
from methods.parts.mlp import normed_projector
from methods.parts.momentum_network import MomentumNetwork
from methods.parts.ranks import own_places, rows_of_all_ranks
from methods.parts.schedule import Ramp
from methods.parts.teacher import Decay
from methods.parts.variants import completed_by
from methods.two_views import TARGETS, TwoViewMethod, TwoViewsConfig, embed, mean_over_pairs

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {**AUGMENT, "projector_layers": 3, "temperature": 0.2},
    "released": {**AUGMENT, "projector_layers": 2, "temperature": 1.0},
}


class MoCoV3(TwoViewMethod):
    """An encoder, a projector and a predictor, and the moving average of the first two."""

    class Config(TwoViewsConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        hidden_dim         of projector and predictor
        projector_layers   of the projector; the predictor has two
        teacher_decay      a number, or its schedule; see ``Ramp``
        """

        name: Literal["moco_v3"] = "moco_v3"
        variant: Literal["paper", "released"] = "paper"
        augment: Augmentation = Augmentation(**AUGMENT["augment"])
        augment_other: Augmentation | None = Augmentation(**AUGMENT["augment_other"])
        temperature: float = Field(default=0.2, gt=0)
        hidden_dim: PositiveInt = 4096
        projector_dim: PositiveInt = 256
        projector_layers: Literal[2, 3] = 3
        teacher_decay: Decay = Ramp(start=0.99, end=1.0)

        _completed = completed_by(VARIANTS)

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        hidden, dim = config.hidden_dim, config.projector_dim
        self.projector = normed_projector(encoder.channels[-1], hidden, dim, config.projector_layers)
        self.predictor = normed_projector(dim, hidden, dim, 2)
        self.teacher = MomentumNetwork(encoder, self.projector, config.teacher_decay)

    def loss(self, views: Views) -> Losses:
        """Compute eq. 1 in both directions. Each view passes alone, through both networks."""
        config = self.config
        predictions = [self.predictor(z) for z in embed(self.encoder, self.projector, views.images)]
        q = [F.normalize(p, dim=1) for p in predictions]
        keys = [F.normalize(self.teacher(image), dim=1) for image in views.images[:TARGETS]]
        everyone, own = [rows_of_all_ranks(key) for key in keys], own_places(keys[0])
        if len(everyone[0]) < 2:
            raise ValueError(
                "batch of 1 sample: it has no other sample to be told from; raise budget.batch_size to 2"
            )

        def logits(view: int, target: int) -> Float[Tensor, "b n"]:
            return batch_logits(q[view], everyone[target], config.temperature)

        scale = TARGETS * 2 * config.temperature
        loss = scale * mean_over_pairs(lambda view, target: contrast_loss(logits(view, target), own), len(q))
        parts = {
            **collapse_part(predictions[0]),
            **found_part(logits(0, 1), own),
            "positive_cosine": (q[0].detach() * keys[1]).sum(1).mean(),
        }
        # Of equal embeddings, all N keys are alike.
        return Losses(loss, parts, loss.new_tensor(scale * log(len(everyone[0]))))

    def after_step(self, progress: Progress) -> None:
        """Move the average."""
        self.teacher.follow(self.encoder, self.projector, progress.share)
