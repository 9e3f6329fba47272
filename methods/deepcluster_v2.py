"""DeepCluster-v2: all crops of a sample predict its cluster; k-means clusters all samples anew after each epoch.

Paper:     the plain 2D and 3D baselines of JSSL (seed 000), and its first stage; the method is Caron et al.,
           "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020, appendix A.
Reference: stage 1 was run with facebookresearch/vissl, ``deepclusterv2_2crops_resnet``, whose twin is
           ``main_deepclusterv2.py`` of facebookresearch/swav @ 04b8f43. JSSL's stage 3 is ``ssl_deepcluster_3D.py``.
Variants:  the flag is a field of the config and can be set on its own.
                          paper                            released
           learn_after    None: prototypes stay the        313: after so many steps, gradients move them between
                          centroids of the last k-means,   one k-means and the next; they are not normalised then
                          as in the 2D code of Caron       (JSSL's stage 3)
                          et al. and in JSSL's stage 1
           The paper says that each cluster has roughly the same size; no code sees to that, and nor does this one.
           The released code fills its banks by a pass over all samples before the first epoch. Here, a sample that
           has no cluster yet, as none has in the first epoch, is given the prototype that is strongest in its code
           (``parts/sinkhorn.py``, over the batch of all ranks): so that epoch trains, too, and the banks fill
           meanwhile. A batch has many more codes than one cluster, whatever the random weights make of its samples.
Shapes:    B samples, A large crops, V crops, H heads, C channels, *s spatial axes, d dimensions, K prototypes.
"""

from math import log
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from data.views.rng import SampleRng
from data.views.transforms import SWAV
from methods.base import Facts, FrozenConfig, Losses, Method, ParamGroup, Progress, Views, split_decay
from methods.encoders import Encoder
from methods.parts.cluster_health import agreement_part, renamed_share, size_entropy, sizes
from methods.parts.kmeans import UNASSIGNED, random_rows, spherical_kmeans
from methods.parts.mlp import hidden_projector
from methods.parts.multi_crop import AreaCrops, MultiCrop, embed_crops
from methods.parts.precision import full_precision
from methods.parts.prototypes import Prototypes
from methods.parts.ranks import share_of
from methods.parts.row_bank import keep, look_up
from methods.parts.sinkhorn import sinkhorn
from methods.parts.variants import completed_by

EPSILON, ITERATIONS = 0.05, 3  # of the codes of samples that have no cluster yet: SwAV's
# What is known of the clusters since the last epoch's end, in the order of the buffer.
HEALTH = ("assignments_changed", "cluster_entropy", "prototypes_in_use", "smallest_cluster", "largest_cluster")

_AUGMENT: dict[str, Any] = {
    "flip_axes": ("W",),
    "flip_prob": 0.5,
    "transforms": SWAV,
}
_LARGE: dict[str, Any] = {"num": 2, "area": (0.08, 1.0)}
_SMALL: dict[str, Any] = {"num": 0, "area": (0.05, 0.14)}
_PAPER: dict[str, Any] = {
    "large_crops": _LARGE,
    "small_crops": _SMALL,
    "augment": _AUGMENT,
    "learn_after": None,
}
VARIANTS: dict[str, dict[str, Any]] = {"paper": _PAPER, "released": {**_PAPER, "learn_after": 313}}


@full_precision()
def cluster_loss(
    scores: Float[Tensor, "h v b k"], clusters: Int64[Tensor, "b h"], temperature: float
) -> Float[Tensor, ""]:
    """Return the cross-entropy of every crop's prediction with its sample's cluster; a mean over heads as well."""
    labels = clusters.T[:, None].expand(scores.shape[:3])
    return F.cross_entropy((scores / temperature).flatten(0, 2), labels.flatten())


class DeepClusterV2(Method):
    """An encoder, whose last map is averaged over space, a projector, and several heads of prototypes."""

    positives: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        large_crops      crops whose embeddings are kept, in a bank for each; the heads cluster these banks in turn
        small_crops      crops that only predict
        num_heads        heads, each with clusters of its own
        num_iterations   of k-means
        learn_after      first steps in which the prototypes take no gradient; None: they never do
        """

        name: Literal["deepcluster_v2"] = "deepcluster_v2"
        variant: Literal["paper", "released"] = "paper"
        large_crops: AreaCrops = AreaCrops(**_LARGE)
        small_crops: AreaCrops = AreaCrops(**_SMALL)
        augment: Augmentation = Augmentation(**_AUGMENT)
        hidden_dim: PositiveInt = 2048
        projector_dim: PositiveInt = 128
        num_heads: PositiveInt = 3
        num_prototypes: int = Field(default=3000, ge=2)
        num_iterations: PositiveInt = 10
        temperature: float = Field(default=0.1, gt=0)
        learn_after: NonNegativeInt | None = None

        _completed = completed_by(VARIANTS)

        @field_validator("large_crops")
        @classmethod
        def _has_a_pair(cls, crops: AreaCrops) -> AreaCrops:
            if crops.num < 2:
                raise ValueError(f"num {crops.num}: expected at least 2 crops, which share their sample's cluster")
            return crops

    bank: Tensor
    clusters: Tensor
    seed: Tensor
    health: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        self.crops = MultiCrop(config.large_crops, config.small_crops, config.augment, encoder.spatial_dims)
        self.crops.check_encoder(encoder.stride)
        self.encoder: Encoder = encoder
        self.projector = hidden_projector(encoder.channels[-1], config.hidden_dim, config.projector_dim)
        self.prototypes = nn.ModuleList(
            Prototypes(config.projector_dim, config.num_prototypes) for _ in range(config.num_heads)
        ).requires_grad_(config.learn_after is not None)
        self.share = share_of(facts.num_samples)
        num_rows = self.share.stop - self.share.start
        # A row of zeros has no embedding yet. numpy's zeros take no memory before they are written to, torch's do.
        bank = np.zeros((num_rows, config.large_crops.num, config.projector_dim), np.float32)
        self.register_share("bank", torch.from_numpy(bank))
        self.register_share("clusters", torch.full((num_rows, config.num_heads), UNASSIGNED))
        # Of the first centroids; all ranks draw the same ones.
        self.register_buffer("seed", torch.randint(2**31, (1,)))
        self.register_buffer("health", torch.tensor([1.0, 0, 0, 0, 0]))
        self._seen: tuple[Tensor, Tensor] | None = None

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut the large and the small crops, and augment each on its own."""
        return self.crops.views(batch, rng)

    def loss(self, views: Views) -> Losses:
        """Compute the cross-entropy with the clusters of the last k-means."""
        z = embed_crops(self.encoder, self.projector, views.images)
        scores = torch.stack([head(z) for head in self.prototypes])
        clusters = self._clusters_of(views.rows, scores.detach())
        if views.rows is not None:
            self._seen = (views.rows, z[: self.config.large_crops.num].detach().transpose(0, 1))
        nearest = scores.detach().argmax(-1)
        parts = {
            "accuracy": (nearest == clusters.T[:, None]).to(z).mean(),
            **agreement_part(nearest.transpose(0, 1).flatten(1)),
            "cluster_entropy_most": z.new_tensor(log(self.config.num_prototypes)),
            **dict(zip(HEALTH, self.health, strict=True)),
        }
        return Losses(cluster_loss(scores, clusters, self.config.temperature), parts)

    def doubts(self) -> tuple[str, ...]:
        """Doubt more clusters than samples."""
        found, wanted = self.facts.num_samples, self.config.num_prototypes
        if found >= wanted:
            return ()
        return (
            f"method.num_prototypes {wanted}: there are {found} samples to cluster, so that {wanted - found} or more "
            f"clusters stay empty and samples are alone in theirs; set it to {found // 2} or fewer",
        )

    def param_groups(self) -> list[ParamGroup]:
        """Return all parameters that learn; the prototypes learn after ``learn_after`` steps, or never."""
        others = [*self.encoder.parameters(), *self.projector.parameters()]
        groups = split_decay(p for p in others if p.requires_grad)
        if self.config.learn_after is None:
            return groups
        starts_at = self.config.learn_after / self.facts.steps
        return [*groups, ParamGroup([*self.prototypes.parameters()], starts_at=starts_at)]

    def after_step(self, progress: Progress) -> None:
        """Keep the embeddings of the step's large crops."""
        assert self._seen is not None, "a step sees samples that have rows"
        keep(self.bank, self.share, *self._seen)

    @torch.no_grad()
    def after_epoch(self, progress: Progress) -> None:
        """Cluster each head's bank, and make the centroids its prototypes."""
        config, found = self.config, list[Tensor]()
        for number, head in enumerate(self.prototypes):
            assert isinstance(head, Prototypes)
            points, before = self.bank[:, number % config.large_crops.num], self.clusters[:, number].clone()
            seed = int(self.seed) + progress.epoch * config.num_heads + number
            device, num_samples = head.weight.device, self.facts.num_samples
            first = random_rows(points, self.share, num_samples, config.num_prototypes, seed, device)
            clusters, centroids = spherical_kmeans(points, first, config.num_iterations)
            head.weight.copy_(centroids)
            self.clusters[:, number] = clusters
            found.append(self._health_of(before.to(device), clusters.to(device)))
        mean, stacked = torch.stack(found).mean(0), torch.stack(found)
        self.health.copy_(torch.cat([mean[:3], stacked[:, 3].amin(0, True), stacked[:, 4].amax(0, True)]))

    def _health_of(self, before: Int64[Tensor, " n"], now: Int64[Tensor, " n"]) -> Float[Tensor, " five"]:
        """Return a head's numbers in the order of ``HEALTH``."""
        counts = sizes(now, self.config.num_prototypes)
        changed = renamed_share(before, now, self.config.num_prototypes)
        return torch.stack([changed, size_entropy(counts), (counts > 0).double().sum(), counts.min(), counts.max()])

    def _clusters_of(
        self, rows: Int64[Tensor, " b"] | None, scores: Float[Tensor, "h v b k"]
    ) -> Int64[Tensor, "b h"]:
        """Return each sample's clusters; where it has none yet, the prototypes that are strongest in its codes."""
        bank_of = torch.arange(len(scores)) % self.config.large_crops.num
        clustered = scores[torch.arange(len(scores)), bank_of]
        coded = sinkhorn(clustered, EPSILON, ITERATIONS).argmax(-1).T
        if rows is None:
            return coded
        clusters = look_up(self.clusters, self.share, rows)
        return torch.where(clusters >= 0, clusters, coded)
