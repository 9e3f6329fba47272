"""C2L: MoCo whose queries are also mixtures of two samples, which find the mixed sample's key and the mixed keys.

Paper:     Zhou et al., "Comparing to Learn: Surpassing ImageNet Pretraining on Radiographs by Comparing Image
           Representations", MICCAI 2020; a rival in Table 11 of VoCo (seed 002).
Reference: funnyzhou/C2L_MICCAI2020 @ 2e3b008, ``train_C2L_res18.py``; the memory of @ a7c814d.
Variants:  none: the settings are those of the released code, as the paper's text was not at hand.
           The code's criterion is noise-contrastive estimation, and cross-entropy with ``--softmax``: here it is
           cross-entropy, as in MoCo. A step's three kinds of keys enter the queue after the step; the code adds each
           before the next kind is compared. The share of a mixture is drawn for each sample, not for a batch, and its
           partner is the next sample of the batch, over all ranks: so neither chunks nor ranks change anything.
           Cutout (three holes of 32 of 224 pixels) is left out. The code's views show [0.2, 1] of a radiograph:
           ``crops: {size: 224, area: [0.2, 1]}``. Small crops, which the code lacks, are further unmixed queries.
Shapes:    B samples of a rank, V views, C channels, *s spatial axes, K keys of earlier steps, d dimensions.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from data.views.rng import SampleRng
from data.views.transforms import Affine, ColourJitter, Grey
from methods.base import Facts, Losses, Progress, Views
from methods.encoders import Encoder
from methods.parts.contrast import contrast_loss, found_part, queue_logits
from methods.parts.key_queue import key_queue, loss_of_constant
from methods.parts.momentum_network import MomentumNetwork
from methods.parts.precision import Head
from methods.parts.ranks import next_samples, number_of_ranks
from methods.parts.teacher import Decay
from methods.two_views import TwoViewMethod, TwoViewsConfig, embed, embed_together

_AUGMENT: dict[str, Any] = {
    "flip_axes": ("W",),
    "flip_prob": 0.5,
    "transforms": (
        Affine(scales=(1.0, 1.0), degrees=(-10.0, 10.0)),
        Grey(prob=0.2),
        ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4),
    ),
}


def mixed(rows: Float[Tensor, "b *d"], shares: Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
    """Return a share of each sample plus the rest of the next one, over all ranks; no gradients."""
    own = shares.to(rows).view(-1, *[1] * (rows.ndim - 1))
    return own * rows.detach() + (1 - own) * next_samples(rows)


class C2L(TwoViewMethod):
    """An encoder and a linear projector, their moving average, and a queue of its keys."""

    class Config(TwoViewsConfig):
        """The first view is the query, the second the key.

        queue_length    keys of earlier steps, over all ranks
        queued          which keys of a step enter the queue: also those of mixtures and the mixtures of keys, or the
                        plain ones
        least_share     of the sample that a mixture is named by; the share is drawn from there to 1
        teacher_decay   a number, or its schedule; see ``Ramp``
        """

        name: Literal["c2l"] = "c2l"
        augment: Augmentation = Augmentation(**_AUGMENT)
        temperature: float = Field(default=0.07, gt=0)
        projector_dim: PositiveInt = 128
        queue_length: PositiveInt = 16384
        queued: Literal["all", "plain"] = "all"
        least_share: float = Field(default=0.5, ge=0.5, le=1)
        teacher_decay: Decay = 0.999

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.projector = Head(nn.Linear(encoder.channels[-1], config.projector_dim))
        self.teacher = MomentumNetwork(encoder, self.projector, config.teacher_decay)
        self.queue = key_queue(config.queue_length, config.projector_dim)
        self._keys: list[Tensor] = []

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut and augment the views, and draw the share of each sample in its mixture."""
        views = super().views(batch, rng)
        shares = rng.fold("share").uniform(low=self.config.least_share, high=1.0)
        return replace(views, targets={"shares": torch.from_numpy(shares).to(views.images[0])})

    def loss(self, views: Views) -> Losses:
        """Compute the mean of three contrasts: of plain views, of mixtures, and of mixtures with mixed keys."""
        (first, second, *small), shares = views.images, views.targets["shares"]
        if len(first) * number_of_ranks() < 2:
            raise ValueError(
                "batch of 1 sample: it has no other sample to be mixed with; raise budget.batch_size to 2"
            )
        queries = embed(self.encoder, self.projector, [first, *small])
        (of_mixture,) = embed_together(self.encoder, self.projector, [mixed(first, shares)])
        key, mixture_key = self.teacher(second), self.teacher(mixed(second, shares))
        keys = [F.normalize(k, dim=1) for k in (key, mixture_key, mixed(key, shares))]
        self._keys = keys if self.config.queued == "all" else keys[:1]
        plain = [self._logits(q, keys[0]) for q in queries]
        of_mixtures = [self._logits(of_mixture, k) for k in keys[1:]]
        own = torch.zeros(len(key), dtype=torch.int64, device=key.device)
        contrasts = [
            torch.stack([contrast_loss(each, own) for each in plain]).mean(),
            *(contrast_loss(each, own) for each in of_mixtures),
        ]
        parts = {
            **found_part(plain[0], own),
            "mixed_accuracy": found_part(of_mixtures[0], own)["accuracy"],
            "positive_cosine": F.cosine_similarity(queries[0].detach(), key).mean(),
        }
        return Losses(torch.stack(contrasts).mean(), parts, loss_of_constant(self.queue, self.config.temperature))

    def after_step(self, progress: Progress) -> None:
        """Move the average, and add the step's keys to the queue, the plain ones last."""
        self.teacher.follow(self.encoder, self.projector, progress.share)
        for keys in reversed(self._keys):
            self.queue.push(keys[None])

    def _logits(self, q: Float[Tensor, "b d"], key: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        return queue_logits(F.normalize(q, dim=1), key, self.queue.rows[0], self.config.temperature)
