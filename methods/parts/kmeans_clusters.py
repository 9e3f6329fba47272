"""KMeansClusters: all views of a sample predict its cluster; k-means clusters all samples anew after each epoch.

Paper:     Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
           appendix A.
Reference: ``main_deepclusterv2.py`` of facebookresearch/swav @ 04b8f43. It fills its banks by a pass over all samples
           before the first epoch. Here, a sample that has no cluster yet, as none has in the first epoch, is given
           the prototype that is strongest in its code (``sinkhorn.py``, over the batch of all ranks): so that epoch
           trains, too, and the banks fill meanwhile. A batch has many more codes than one cluster, whatever the
           random weights make of its samples.
Shapes:    B samples, A views with a bank, V views, H heads, d dimensions, K prototypes.
"""

from math import log
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Facts, FrozenConfig, Losses, ParamGroup, Progress
from methods.parts.cluster_health import agreement_part, renamed_share, size_entropy, sizes
from methods.parts.clusters import Clusters
from methods.parts.kmeans import UNASSIGNED, random_rows, spherical_kmeans
from methods.parts.precision import full_precision
from methods.parts.prototypes import Prototypes
from methods.parts.ranks import share_of
from methods.parts.row_bank import keep, look_up
from methods.parts.sinkhorn import sinkhorn

EPSILON, ITERATIONS = 0.05, 3  # of the codes of samples that have no cluster yet: SwAV's
# What is known of the clusters since the last epoch's end, in the order of the buffer.
HEALTH = ("assignments_changed", "cluster_entropy", "prototypes_in_use", "smallest_cluster", "largest_cluster")


@full_precision()
def cluster_loss(
    scores: Float[Tensor, "h v b k"], clusters: Int64[Tensor, "b h"], temperature: float
) -> Float[Tensor, ""]:
    """Return the cross-entropy of every view's prediction with its sample's cluster; a mean over heads as well."""
    labels = clusters.T[:, None].expand(scores.shape[:3])
    return F.cross_entropy((scores / temperature).flatten(0, 2), labels.flatten())


class KMeansClusters(Clusters):
    """Several heads of prototypes, a bank of all samples' embeddings for each view that tells clusters."""

    class Config(FrozenConfig):
        """The constants that the papers leave out are the released ones.

        num_heads        heads, each with clusters of its own; they cluster the banks in turn
        num_iterations   of k-means
        learn_after      first steps in which the prototypes take no gradient; None: they never do
        """

        name: Literal["deepcluster_v2"] = "deepcluster_v2"
        num_heads: PositiveInt = 3
        num_prototypes: int = Field(default=3000, ge=2)
        num_iterations: PositiveInt = 10
        temperature: float = Field(default=0.1, gt=0)
        learn_after: NonNegativeInt | None = None

    bank: Tensor
    assigned: Tensor
    seed: Tensor
    health: Tensor

    def __init__(self, config: Config, dim: int, num_banks: int, facts: Facts, place: str = "method") -> None:
        super().__init__(facts, place)
        self.config, self.num_banks = config, num_banks
        self.prototypes = nn.ModuleList(
            Prototypes(dim, config.num_prototypes) for _ in range(config.num_heads)
        ).requires_grad_(config.learn_after is not None)
        self.share = share_of(facts.num_samples)
        num_rows = self.share.stop - self.share.start
        # A row of zeros has no embedding yet. numpy's zeros take no memory before they are written to, torch's do.
        bank = np.zeros((num_rows, num_banks, dim), np.float32)
        self.register_share("bank", torch.from_numpy(bank))
        self.register_share("assigned", torch.full((num_rows, config.num_heads), UNASSIGNED))
        # Of the first centroids; all ranks draw the same ones.
        self.register_buffer("seed", torch.randint(2**31, (1,)))
        self.register_buffer("health", torch.tensor([1.0, 0, 0, 0, 0]))
        self._seen: tuple[Tensor, Tensor] | None = None

    def loss(self, z: Float[Tensor, "v b d"], rows: Int64[Tensor, " b"] | None) -> Losses:
        """Compute the cross-entropy with the clusters of the last k-means."""
        scores = torch.stack([head(z) for head in self.prototypes])
        clusters = self._clusters_of(rows, scores.detach())
        if rows is not None:
            self._seen = (rows, z[: self.num_banks].detach().transpose(0, 1))
        nearest = scores.detach().argmax(-1)
        parts = {
            "accuracy": (nearest == clusters.T[:, None]).to(z).mean(),
            **agreement_part(nearest.transpose(0, 1).flatten(1)),
            "cluster_entropy_most": z.new_tensor(log(self.config.num_prototypes)),
            **dict(zip(HEALTH, self.health, strict=True)),
        }
        # The sizes of the clusters are the best constant prediction; before there are clusters, a uniform one is.
        clustered, most = self.health[HEALTH.index("prototypes_in_use")] > 0, parts["cluster_entropy_most"]
        of_constant = torch.where(clustered, self.health[HEALTH.index("cluster_entropy")].to(most), most)
        return Losses(cluster_loss(scores, clusters, self.config.temperature), parts, of_constant)

    def doubts(self) -> tuple[str, ...]:
        """Doubt more clusters than samples."""
        found, wanted = self.facts.num_samples, self.config.num_prototypes
        if found >= wanted:
            return ()
        return (
            f"{self.place}.num_prototypes {wanted}: there are {found} samples to cluster, so that {wanted - found} "
            f"or more clusters stay empty and samples are alone in theirs; set it to {found // 2} or fewer",
        )

    def param_groups(self) -> list[ParamGroup]:
        """Return the prototypes, which learn after ``learn_after`` steps, or never."""
        if self.config.learn_after is None:
            return []
        return [ParamGroup([*self.prototypes.parameters()], starts_at=self.config.learn_after / self.facts.steps)]

    def after_step(self, progress: Progress) -> None:
        """Keep the embeddings of the step's first views."""
        assert self._seen is not None, "a step sees samples that have rows"
        keep(self.bank, self.share, *self._seen)

    @torch.no_grad()
    def after_epoch(self, progress: Progress) -> None:
        """Cluster each head's bank, and make the centroids its prototypes."""
        config, found = self.config, list[Tensor]()
        for number, head in enumerate(self.prototypes):
            assert isinstance(head, Prototypes)
            points, before = self.bank[:, number % self.num_banks], self.assigned[:, number].clone()
            seed = int(self.seed) + progress.epoch * config.num_heads + number
            device, num_samples = head.weight.device, self.facts.num_samples
            first = random_rows(points, self.share, num_samples, config.num_prototypes, seed, device)
            clusters, centroids = spherical_kmeans(points, first, config.num_iterations)
            head.weight.copy_(centroids)
            self.assigned[:, number] = clusters
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
        bank_of = torch.arange(len(scores)) % self.num_banks
        clustered = scores[torch.arange(len(scores)), bank_of]
        coded = sinkhorn(clustered, EPSILON, ITERATIONS).argmax(-1).T
        if rows is None:
            return coded
        clusters = look_up(self.assigned, self.share, rows)
        return torch.where(clusters >= 0, clusters, coded)
