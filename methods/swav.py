"""SwAV: each large crop of a sample is coded by prototypes, and the codes are predicted from the other crops.

Paper:     the plain 2D and 3D baselines of JSSL (seed 000), and its first stage: "Clustering Agreement for 2D
           Images"; the method is Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
           Assignments", NeurIPS 2020.
Reference: stage 1 was run with facebookresearch/vissl, ``swav_8node_resnet``; facebookresearch/swav @ 04b8f43 is its
           twin. The printed numbers came from it. The 3D baseline was not released.
Variants:  each flag is a field of the config and can be set on its own.
                            paper                              released
           small_crops.num  0: two transformations             6
           codes            together: eq. 2 codes all views    apart: the large crops one by one
                            of a batch at once
           reduction        sum: eq. 3 adds the crops' losses  mean
           Eq. 1 normalises the encoder's output and names no projector; the 2D code has one, and so have both
           variants here. The paper names neither the number of prototypes nor the constants: they are the released
           ones. As released, prototypes are brought to length 1 before each step, and learn after ``frozen_steps``.
Shapes:    B samples, A large crops, V crops, C channels, *s spatial axes, d dimensions, K prototypes.
"""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator
from torch import Tensor

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from data.views.rng import SampleRng
from data.views.transforms import SWAV
from methods.base import Facts, FrozenConfig, Losses, Method, ParamGroup, Progress, Views, split_decay
from methods.encoders import Encoder
from methods.parts.cluster_health import changed_part, code_parts, doubt, sizes
from methods.parts.embedding_queue import EmbeddingQueue
from methods.parts.mlp import hidden_projector
from methods.parts.multi_crop import AreaCrops, MultiCrop, embed_crops
from methods.parts.precision import full_precision
from methods.parts.prototypes import Prototypes
from methods.parts.ranks import number_of_ranks, share_of
from methods.parts.row_bank import keep, look_up
from methods.parts.sinkhorn import sinkhorn
from methods.parts.variants import completed_by

Reduction = Literal["sum", "mean"]

_AUGMENT: dict[str, Any] = {
    "flip_axes": ("W",),
    "flip_prob": 0.5,
    "transforms": SWAV,
}
_LARGE: dict[str, Any] = {"num": 2, "area": (0.14, 1.0)}
_SMALL: dict[str, Any] = {"num": 0, "area": (0.05, 0.14)}
_PAPER: dict[str, Any] = {
    "large_crops": _LARGE,
    "small_crops": _SMALL,
    "augment": _AUGMENT,
    "codes": "together",
    "reduction": "sum",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "released": {**_PAPER, "small_crops": {**_SMALL, "num": 6}, "codes": "apart", "reduction": "mean"},
}


@full_precision()
def swapped_loss(
    scores: Float[Tensor, "v b k"], codes: Float[Tensor, "a b k"], temperature: float, reduction: Reduction
) -> Float[Tensor, ""]:
    """Return eq. 3: the cross-entropy of each coded crop's code with what every other crop predicts (eq. 4).

    The first ``a`` crops are coded. A mean over samples and over the other crops, and a sum or mean over coded crops.
    """
    num_crops, num_samples, _ = scores.shape
    predicted = (scores / temperature).log_softmax(-1)
    entropies = -torch.einsum("abk,vbk->av", codes, predicted) / num_samples
    others = 1 - torch.eye(len(codes), num_crops, dtype=scores.dtype, device=scores.device)
    by_code = (entropies * others).sum(1) / (num_crops - 1)
    return by_code.sum() if reduction == "sum" else by_code.mean()


class SwAV(Method):
    """An encoder, whose last map is averaged over space, a projector, and prototypes."""

    positives: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    class Config(FrozenConfig):
        """``variant`` fills in the flags that are not given; the completed config is kept.

        large_crops         crops that are coded, and predict
        small_crops         crops that only predict
        epsilon             the weight of the codes' entropy
        num_iterations      of Sinkhorn
        frozen_steps        first steps in which the prototypes stay as they were drawn
        queue_length        embeddings of earlier steps, over all ranks, that are coded with each large crop
        queue_start_epoch   passes over the samples before the queue is filled
        """

        name: Literal["swav"] = "swav"
        variant: Literal["paper", "released"] = "paper"
        large_crops: AreaCrops = AreaCrops(**_LARGE)
        small_crops: AreaCrops = AreaCrops(**_SMALL)
        augment: Augmentation = Augmentation(**_AUGMENT)
        hidden_dim: PositiveInt = 2048
        projector_dim: PositiveInt = 128
        num_prototypes: int = Field(default=3000, ge=2)
        codes: Literal["together", "apart"] = "together"
        reduction: Reduction = "sum"
        temperature: float = Field(default=0.1, gt=0)
        epsilon: float = Field(default=0.05, gt=0)
        num_iterations: PositiveInt = 3
        frozen_steps: NonNegativeInt = 313
        queue_length: NonNegativeInt = 0
        queue_start_epoch: NonNegativeInt = 15

        _completed = completed_by(VARIANTS)

        @field_validator("large_crops")
        @classmethod
        def _has_a_pair(cls, crops: AreaCrops) -> AreaCrops:
            if crops.num < 2:
                raise ValueError(f"num {crops.num}: expected at least 2 crops, whose codes are swapped")
            return crops

    clusters: Tensor
    cluster_sizes: Tensor

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        self.crops = MultiCrop(config.large_crops, config.small_crops, config.augment, encoder.spatial_dims)
        self.crops.check_encoder(encoder.stride)
        self.encoder: Encoder = encoder
        self.projector = hidden_projector(encoder.channels[-1], config.hidden_dim, config.projector_dim)
        self.prototypes = Prototypes(config.projector_dim, config.num_prototypes)
        self.queue = (
            EmbeddingQueue(config.large_crops.num, config.queue_length, config.projector_dim)
            if config.queue_length
            else None
        )
        self.share = share_of(facts.num_samples)
        self.register_share("clusters", torch.full((self.share.stop - self.share.start,), -1))
        self.register_buffer("cluster_sizes", torch.zeros(2))
        self._seen: tuple[Tensor | None, Tensor, Tensor] | None = None

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut the large and the small crops, and augment each on its own."""
        return self.crops.views(batch, rng)

    def loss(self, views: Views) -> Losses:
        """Compute eq. 3, with codes as constants."""
        config, num_coded = self.config, self.config.large_crops.num
        z = embed_crops(self.encoder, self.projector, views.images)
        scores = self.prototypes(z)
        codes, num_embeddings = self._codes(scores[:num_coded].detach())
        clusters = codes[0].argmax(-1)
        self._seen = (views.rows, z[:num_coded].detach(), clusters)
        parts = {
            **code_parts(codes, num_embeddings),
            "smallest_cluster": self.cluster_sizes[0],
            "largest_cluster": self.cluster_sizes[1],
        }
        if views.rows is not None:
            parts |= changed_part(look_up(self.clusters, self.share, views.rows), clusters)
        return Losses(swapped_loss(scores, codes, config.temperature, config.reduction), parts)

    def doubts(self) -> tuple[str, ...]:
        """Doubt a batch that cannot fill the prototypes, and a queue that would not be read in time."""
        config, facts = self.config, self.facts
        begins = -(-config.queue_start_epoch * facts.num_samples // facts.batch_size)
        full = begins + -(-config.queue_length // facts.batch_size)
        late = config.queue_length > 0 and full >= facts.steps
        queued = 0 if late else config.queue_length
        crops = config.large_crops.num if config.codes == "together" else 1
        filled = doubt(config.num_prototypes, facts.batch_size, queued, crops)
        unread = (
            f"method.queue_length {config.queue_length}: the queue is filled from step {begins} on and read once it "
            f"is full, after step {full}; the budget has {facts.steps} steps; lower method.queue_start_epoch"
        )
        return (*([unread] if late else []), *([filled] if filled else []))

    def param_groups(self) -> list[ParamGroup]:
        """Return all parameters; the prototypes learn after ``frozen_steps``."""
        others = [*self.encoder.parameters(), *self.projector.parameters()]
        starts_at = self.config.frozen_steps / self.facts.steps
        return [
            *split_decay(p for p in others if p.requires_grad),
            ParamGroup([*self.prototypes.parameters()], starts_at=starts_at),
        ]

    def after_step(self, progress: Progress) -> None:
        """Bring the prototypes to length 1; remember the embeddings, and each sample's cluster."""
        self.prototypes.normalise()
        assert self._seen is not None
        rows, z, clusters = self._seen
        if rows is not None:
            keep(self.clusters, self.share, rows, clusters)
        epoch = (progress.step - 1) * self.facts.batch_size // self.facts.num_samples
        if self.queue is not None and epoch >= self.config.queue_start_epoch:
            self.queue.push(z)

    def after_epoch(self, progress: Progress) -> None:
        """Count the samples of the smallest and of the largest cluster, for the log."""
        counts = sizes(self.clusters.to(self.cluster_sizes.device), self.config.num_prototypes)
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
