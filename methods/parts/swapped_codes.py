"""SwappedCodes: some views of a sample are coded by prototypes, and the codes are predicted from the other views.

Paper:     Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020;
           JSSL (seed 000), eq. 2 to 4 and 11.
Reference: facebookresearch/swav @ 04b8f43.
Shapes:    B samples, A views that are coded, V views, d dimensions, K prototypes.
"""

from math import log
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from methods.base import Facts, FrozenConfig, Losses, ParamGroup, Progress
from methods.parts.cluster_health import changed_part, code_parts, doubt, sizes
from methods.parts.clusters import Clusters
from methods.parts.embedding_queue import EmbeddingQueue
from methods.parts.precision import full_precision
from methods.parts.prototypes import Prototypes
from methods.parts.ranks import number_of_ranks, share_of
from methods.parts.row_bank import keep, look_up
from methods.parts.sinkhorn import sinkhorn

Reduction = Literal["sum", "mean"]


@full_precision()
def swapped_loss(
    scores: Float[Tensor, "v b k"], codes: Float[Tensor, "a b k"], temperature: float, reduction: Reduction
) -> Float[Tensor, ""]:
    """Return eq. 3: the cross-entropy of each coded view's code with what every other view predicts (eq. 4).

    The first ``a`` views are coded. A mean over samples and over the other views, and a sum or mean over coded views.
    """
    num_views, num_samples, _ = scores.shape
    predicted = (scores / temperature).log_softmax(-1)
    entropies = -torch.einsum("abk,vbk->av", codes, predicted) / num_samples
    others = 1 - torch.eye(len(codes), num_views, dtype=scores.dtype, device=scores.device)
    by_code = (entropies * others).sum(1) / (num_views - 1)
    return by_code.sum() if reduction == "sum" else by_code.mean()


class SwappedCodes(Clusters):
    """Prototypes, a queue of embeddings if it has a length, and each sample's cluster when it was last seen."""

    class Config(FrozenConfig):
        """The constants that the papers leave out are the released ones.

        codes               together: eq. 2 codes all views of a batch at once; apart: the coded views one by one
        reduction           over coded views
        epsilon             the weight of the codes' entropy. While codes are nearly uniform, embeddings move apart
                            only where two views of a sample correlate by more than epsilon / temperature
        num_iterations      of Sinkhorn
        frozen_steps        first steps in which the prototypes stay as they were drawn
        queue_length        embeddings of earlier steps, over all ranks, that are coded with each coded view
        queue_start_epoch   passes over the samples before the queue is filled
        """

        name: Literal["swav"] = "swav"
        num_prototypes: int = Field(default=3000, ge=2)
        codes: Literal["together", "apart"] = "together"
        reduction: Reduction = "sum"
        temperature: float = Field(default=0.1, gt=0)
        epsilon: float = Field(default=0.05, gt=0)
        num_iterations: PositiveInt = 3
        frozen_steps: NonNegativeInt = 313
        queue_length: NonNegativeInt = 0
        queue_start_epoch: NonNegativeInt = 15

    assigned: Tensor
    cluster_sizes: Tensor

    def __init__(self, config: Config, dim: int, num_coded: int, facts: Facts, place: str = "method") -> None:
        super().__init__(facts, place)
        self.config, self.num_coded = config, num_coded
        self.prototypes = Prototypes(dim, config.num_prototypes)
        self.queue = EmbeddingQueue(num_coded, config.queue_length, dim) if config.queue_length else None
        self.share = share_of(facts.num_samples)
        self.register_share("assigned", torch.full((self.share.stop - self.share.start,), -1))
        self.register_buffer("cluster_sizes", torch.zeros(2))
        self._seen: tuple[Tensor | None, Tensor, Tensor] | None = None

    def loss(self, z: Float[Tensor, "v b d"], rows: Int64[Tensor, " b"] | None) -> Losses:
        """Compute eq. 3, with codes as constants."""
        config, scores = self.config, self.prototypes(z)
        codes, num_embeddings = self._codes(scores[: self.num_coded].detach())
        clusters = codes[0].argmax(-1)
        self._seen = (rows, z[: self.num_coded].detach(), clusters)
        parts = {
            **code_parts(codes, num_embeddings),
            "smallest_cluster": self.cluster_sizes[0],
            "largest_cluster": self.cluster_sizes[1],
        }
        if rows is not None:
            parts |= changed_part(look_up(self.assigned, self.share, rows), clusters)
        # The same for all, a prediction is right about codes that use every prototype if it is uniform.
        summands = self.num_coded if config.reduction == "sum" else 1
        of_constant = scores.new_tensor(summands * log(config.num_prototypes))
        return Losses(swapped_loss(scores, codes, config.temperature, config.reduction), parts, of_constant)

    def doubts(self) -> tuple[str, ...]:
        """Doubt a batch that cannot fill the prototypes, and a queue that would not be read in time."""
        config, facts = self.config, self.facts
        begins = -(-config.queue_start_epoch * facts.num_samples // facts.batch_size)
        full = begins + -(-config.queue_length // facts.batch_size)
        late = config.queue_length > 0 and full >= facts.steps
        queued = 0 if late else config.queue_length
        crops = self.num_coded if config.codes == "together" else 1
        filled = doubt(config.num_prototypes, facts.batch_size, queued, crops, self.place)
        unread = (
            f"{self.place}.queue_length {config.queue_length}: the queue is filled from step {begins} on and read "
            f"once it is full, after step {full}; the budget has {facts.steps} steps; lower "
            f"{self.place}.queue_start_epoch"
        )
        return (*([unread] if late else []), *([filled] if filled else []))

    def param_groups(self) -> list[ParamGroup]:
        """Return the prototypes, which learn after ``frozen_steps``."""
        return [ParamGroup([*self.prototypes.parameters()], starts_at=self.config.frozen_steps / self.facts.steps)]

    def after_step(self, progress: Progress) -> None:
        """Bring the prototypes to length 1; remember the embeddings, and each sample's cluster."""
        self.prototypes.normalise()
        assert self._seen is not None
        rows, z, clusters = self._seen
        if rows is not None:
            keep(self.assigned, self.share, rows, clusters)
        epoch = (progress.step - 1) * self.facts.batch_size // self.facts.num_samples
        if self.queue is not None and epoch >= self.config.queue_start_epoch:
            self.queue.push(z)

    def after_epoch(self, progress: Progress) -> None:
        """Count the samples of the smallest and of the largest cluster, for the log."""
        counts = sizes(self.assigned.to(self.cluster_sizes.device), self.config.num_prototypes)
        self.cluster_sizes.copy_(torch.stack([counts.min(), counts.max()]))

    def _codes(self, scores: Float[Tensor, "a b k"]) -> tuple[Float[Tensor, "a b k"], int]:
        """Return the codes, and how many embeddings of all ranks were coded together, with those of the queue."""
        num_coded, num_own, _ = scores.shape
        num_embeddings = num_own * number_of_ranks()
        if self.queue is not None:
            scores = torch.cat([self.prototypes(self.queue.own_part()).detach(), scores], dim=1)
            num_embeddings += self.queue.num_read
        if self.config.codes == "together":
            joined = scores.flatten(0, 1)
            codes = sinkhorn(joined, self.config.epsilon, self.config.num_iterations).view_as(scores)
            num_embeddings *= num_coded
        else:
            codes = sinkhorn(scores, self.config.epsilon, self.config.num_iterations)
        return codes[:, -num_own:], num_embeddings
