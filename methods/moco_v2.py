"""MoCo v2: a view of a sample finds the key of its other view, by a moving average, among keys of earlier samples.

Paper:     Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020; after He et al., "Momentum
           Contrast for Unsupervised Visual Representation Learning", CVPR 2020; a rival in Tables 3 to 6 of JSSL
           (seed 000).
Reference: facebookresearch/moco @ 4397a04.
Variants:  none: the paper's numbers are the flags that the released code is started with.
           The queue begins with random keys of length 1, as released. The hidden layer is as wide as the features,
           which in the paper are 2048: here ``hidden_dim``. There is no shuffled batch norm, which needs several
           ranks with statistics of their own: an encoder's batch norm sees all samples of a view. The paper's views
           show [0.2, 1] of a photograph: ``crops: {size: 224, area: [0.2, 1]}``. Small crops, which the paper lacks,
           are further queries.
Shapes:    B samples of a rank, V views, C channels, *s spatial axes, K keys of earlier steps, d dimensions.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from data.views.transforms import MOCO
from methods.base import Facts, Losses, Progress, Views
from methods.encoders import Encoder
from methods.parts.contrast import contrast_loss, found_part, queue_logits
from methods.parts.key_queue import key_queue, loss_of_constant
from methods.parts.mlp import contrast_projector
from methods.parts.momentum_network import MomentumNetwork
from methods.parts.teacher import Decay
from methods.two_views import TwoViewMethod, TwoViewsConfig, embed


class MoCoV2(TwoViewMethod):
    """An encoder and a projector, their moving average, and a queue of its keys."""

    class Config(TwoViewsConfig):
        """The first view is the query, the second the key.

        queue_length    keys of earlier steps, over all ranks
        teacher_decay   a number, or its schedule; see ``Ramp``
        """

        name: Literal["moco_v2"] = "moco_v2"
        augment: Augmentation = Augmentation(flip_axes=("W",), flip_prob=0.5, transforms=MOCO)
        temperature: float = Field(default=0.2, gt=0)
        hidden_dim: PositiveInt = 2048
        projector_dim: PositiveInt = 128
        queue_length: PositiveInt = 65536
        teacher_decay: Decay = 0.999

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.projector = contrast_projector(encoder.channels[-1], config.hidden_dim, config.projector_dim, norm=False)
        self.teacher = MomentumNetwork(encoder, self.projector, config.teacher_decay)
        self.queue = key_queue(config.queue_length, config.projector_dim)
        self._keys: Tensor | None = None

    def loss(self, views: Views) -> Losses:
        """Compute eq. 1 of He et al. for each query. Each view passes alone."""
        config, (first, second, *small) = self.config, views.images
        queries = [F.normalize(q, dim=1) for q in embed(self.encoder, self.projector, [first, *small])]
        key = F.normalize(self.teacher(second), dim=1)
        self._keys, own = key, torch.zeros(len(key), dtype=torch.int64, device=key.device)
        logits = [queue_logits(q, key, self.queue.rows[0], config.temperature) for q in queries]
        loss = torch.stack([contrast_loss(each, own) for each in logits]).mean()
        parts = {
            **found_part(logits[0], own),
            "positive_cosine": (queries[0].detach() * key).sum(1).mean(),
        }
        return Losses(loss, parts, loss_of_constant(self.queue, config.temperature))

    def after_step(self, progress: Progress) -> None:
        """Move the average, and add the step's keys to the queue."""
        self.teacher.follow(self.encoder, self.projector, progress.share)
        assert self._keys is not None
        self.queue.push(self._keys[None])
