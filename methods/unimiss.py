"""UniMiSS: a volume and its own slices, through one transformer, predict what a teacher says of either.

Paper:     Xie et al., "UniMiSS: Universal Medical Self-Supervised Learning via Breaking Dimensionality Barrier", ECCV
           2022; a rival of VoCo in seed 002, Table 3.
Reference: YtongXie/UniMiSS-code @ 68be0a4, ``UniMiSS/main.py``: AdamW at 8e-4 for a batch of 256, clipped to a norm
           of 0.3; 65,536 outputs, an average that keeps 0.996 of itself at first, and a temperature of 0.04.
Variants:  none. The paper's text was not at hand: what follows is its code's, and some of it is done otherwise.
           - Two passes over radiographs and two over volumes take turns there. A training here is fed samples of one
             dimension: on volumes the slices are 2D data, on images (2D) there is no more than DINO's loss. Stages
             one after the other, of 2D and of 3D, can share the weights of an encoder that is ``switchable``.
           - The class token is the encoder's last, not that of stages that decode behind it.
           - A step moves the centre once, by the mean of all scores of the teacher; there each of the four terms
             moves it, and the next term is centred anew.
           - The size of crops is the code's. They show [0.14, 1] of a sample, as those of radiographs there; crops
             of volumes there show 0.2 to 0.73 of a window of 134 to 173 pixels, whole in depth. Intensities vary as
             those of volumes there; flips happen in half of the cases, as in DINO, not in 80 %.
           - That the weight decay rises from 0.04 to 0.4 is the optimiser's matter (``final_weight_decay``).
           UniMiSS+ (TPAMI 2024), with simulated radiographs of volumes and another transformer, is not this method.
Shapes:    B samples, A large crops, V crops, C channels, *s spatial axes, K outputs, M kinds: volumes and slices.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from data.views.augmentation import Augmentation
from methods.base import Facts, Losses, Views
from methods.encoders import Encoder
from methods.parts.class_tokens import (
    AUGMENTATION,
    DEFAULTS,
    LARGE_CROPS,
    learning_both,
    slice_scores,
    token_scores,
    with_size,
)
from methods.parts.cluster_health import code_parts
from methods.parts.distillation import entropy_of_mean
from methods.parts.multi_crop import AreaCrops
from methods.parts.precision import Head
from methods.parts.ranks import number_of_ranks
from methods.parts.swapped_codes import swapped_loss
from methods.parts.variants import completed_by
from methods.self_distillation import DistillationConfig, SelfDistillation


def consistency_losses(
    scores: Float[Tensor, "m v b k"], codes: Float[Tensor, "m a b k"], temperature: float
) -> Float[Tensor, "m m"]:
    """Return the mean cross-entropy of what each kind predicts (rows) with the codes of each kind (columns)."""
    return torch.stack(
        [torch.stack([swapped_loss(own, told, temperature, "mean") for told in codes]) for own in scores]
    )


class UniMiSS(SelfDistillation):
    """A pyramid transformer, of whose class token a head makes scores; a teacher has both, too."""

    encoders: ClassVar[tuple[str, ...]] = ("pyramid_transformer",)

    class Config(DistillationConfig):
        """Crops of volumes measure 16 x 96 x 96 voxels by default; DINO's settings as released."""

        name: Literal["unimiss"] = "unimiss"
        large_crops: AreaCrops = LARGE_CROPS
        augment: Augmentation = AUGMENTATION

        _completed = completed_by({"paper": DEFAULTS})

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        network, dims = learning_both(encoder, config.name), encoder.spatial_dims
        sizes = {field: with_size(getattr(config, field), dims) for field in ("large_crops", "small_crops")}
        super().__init__(config.model_copy(update=sizes), network, facts)

    def loss(self, views: Views) -> Losses:
        """Compute four terms on volumes, each of volumes or slices with codes of either, and one on images."""
        num_large = self.config.large_crops.num
        scores = self._scores(self.encoder, self.head, views.images)
        with torch.no_grad():
            told = self._scores(self.teacher.encoder, self.teacher.head, views.images[:num_large])
        codes = self.codes(told.flatten(0, 1))
        parts = code_parts(codes, codes.shape[0] * codes.shape[1] * number_of_ranks())
        total = consistency_losses(scores, codes.view_as(told), self.config.temperature).sum()
        # What does not look at images gives all kinds the same answer: that nearest to all codes.
        return Losses(total, parts, len(scores) ** 2 * entropy_of_mean(codes))

    def _scores(self, encoder: Encoder, head: Head, images: tuple[Tensor, ...]) -> Float[Tensor, "m v b k"]:
        """Return the scores of all views, as they are and, of volumes, as means over slices."""
        found = [token_scores(encoder, head, images)]
        if encoder.spatial_dims == 3:
            found.append(slice_scores(encoder, head, images))
        return torch.stack(found)
