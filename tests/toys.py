"""A toy method that asks the contract for all that clustering needs."""

from math import log
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import cut
from data.views.batch import Batch
from data.views.boxes import uniform_boxes
from data.views.rng import SampleRng
from methods.base import Facts, FrozenConfig, Losses, Method, Progress, Views
from methods.encoders import Encoder
from methods.parts.flat_map import mean_features
from methods.parts.precision import LinearHead, full_precision
from methods.parts.ranks import rows_of_all_ranks, share_of

SIDE, DIM, NUM_CLUSTERS, ROUNDS = 32, 8, 3, 4


class ToyClusters(Method):
    """Predict each sample's cluster; samples are clustered anew at each epoch's end by their last embeddings.

    Each rank keeps the embeddings of its own part of all samples.
    """

    class Config(FrozenConfig):
        name: Literal["toy_clusters"] = "toy_clusters"

    bank: Tensor
    centres: Tensor
    clusters: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.encoder: Encoder = encoder
        self.head = LinearHead(encoder.channels[-1], DIM)
        self.share = share_of(facts.num_samples)
        self.register_buffer("centres", F.normalize(torch.randn(NUM_CLUSTERS, DIM), dim=1))
        self.register_buffer("clusters", torch.arange(facts.num_samples) % NUM_CLUSTERS)
        self.register_share("bank", torch.zeros(self.share.stop - self.share.start, DIM))
        self._seen: tuple[Tensor, Tensor] | None = None

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        boxes = uniform_boxes(batch.extents, (SIDE,) * batch.spatial_dims, rng)
        return Views((cut(batch, boxes),), (boxes,))

    def loss(self, views: Views) -> Losses:
        z = self.head(mean_features(self.encoder, views.images[0]))
        assert views.rows is not None
        self._seen = views.rows, z.detach()
        with full_precision():
            loss = F.cross_entropy(z @ self.centres.to(z).T, self.clusters[views.rows])
        return Losses(loss, of_constant=loss.new_tensor(log(NUM_CLUSTERS)))

    def after_step(self, progress: Progress) -> None:
        assert self._seen is not None
        rows, z = (rows_of_all_ranks(part) for part in self._seen)
        own = (rows >= self.share.start) & (rows < self.share.stop)
        self.bank[rows[own] - self.share.start] = z[own].to(self.bank)

    def after_epoch(self, progress: Progress) -> None:
        points = F.normalize(rows_of_all_ranks(self.bank), dim=1)
        for _ in range(ROUNDS):
            self.clusters.copy_((points @ self.centres.to(points).T).argmax(1))
            sums = torch.zeros_like(points[:NUM_CLUSTERS]).index_add(0, self.clusters, points)
            self.centres.copy_(
                F.normalize(torch.where(sums.norm(dim=1, keepdim=True) > 0, sums, self.centres), dim=1)
            )
