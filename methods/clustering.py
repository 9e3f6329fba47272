"""Clustering: what SwAV, DeepCluster-v2 and JSSL's last stage share: embeddings of views, and their clusters.

Shapes:    B samples, V views, C channels, *s spatial axes, d dimensions.
"""

from abc import abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import PositiveInt, field_validator
from torch import Tensor

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from data.views.rng import SampleRng
from data.views.transforms import SWAV
from methods.base import Facts, FrozenConfig, Losses, Method, ParamGroup, Progress, Views, split_decay
from methods.encoders import Encoder
from methods.parts.clusters import Clusters
from methods.parts.kmeans_clusters import KMeansClusters
from methods.parts.mlp import hidden_projector
from methods.parts.multi_crop import AreaCrops, MultiCrop, embed_crops
from methods.parts.swapped_codes import SwappedCodes

ClustersConfig = SwappedCodes.Config | KMeansClusters.Config
# Flags that the variants of SwAV and DeepCluster-v2 share: who gives one field of a part keeps the others.
CROPS: dict[str, dict[str, Any]] = {
    "small_crops": {"num": 0, "area": (0.05, 0.14)},
    "augment": {"flip_axes": ("W",), "flip_prob": 0.5, "transforms": SWAV},
}


def clusters_of(config: ClustersConfig, dim: int, num_telling: int, facts: Facts, place: str = "method") -> Clusters:
    """Build clusters of embeddings (d = ``dim``), which the first ``num_telling`` views of a sample tell."""
    if isinstance(config, SwappedCodes.Config):
        return SwappedCodes(config, dim, num_telling, facts, place)
    return KMeansClusters(config, dim, num_telling, facts, place)


class Clustering(Method):
    """An encoder, and the clusters of its embeddings."""

    positives: ClassVar[bool] = True
    averages: ClassVar[bool] = True
    clusters: Clusters

    @abstractmethod
    def embed(self, views: Views) -> Float[Tensor, "v b d"]:
        """Return embeddings of length 1."""

    def loss(self, views: Views) -> Losses:
        """Compare the embeddings of a sample's views by their clusters."""
        return self.clusters.loss(self.embed(views), views.rows)

    def doubts(self) -> tuple[str, ...]:
        """Doubt what can hardly fill the clusters."""
        return self.clusters.doubts()

    def param_groups(self) -> list[ParamGroup]:
        """Return all parameters; the prototypes as their clusters have them learn."""
        own = {id(p) for p in self.clusters.parameters()}
        others = (p for p in self.parameters() if p.requires_grad and id(p) not in own)
        return [*split_decay(others), *self.clusters.param_groups()]

    def after_step(self, progress: Progress) -> None:
        """Let the clusters remember what the step has seen."""
        self.clusters.after_step(progress)

    def after_epoch(self, progress: Progress) -> None:
        """Let the clusters see all samples."""
        self.clusters.after_epoch(progress)


class CropsConfig(FrozenConfig):
    """Crops of samples and the projector of their features.

    large_crops   crops that tell their sample's cluster
    small_crops   crops that only predict it
    """

    large_crops: AreaCrops
    small_crops: AreaCrops = AreaCrops(**CROPS["small_crops"])
    augment: Augmentation = Augmentation(**CROPS["augment"])
    hidden_dim: PositiveInt = 2048
    projector_dim: PositiveInt = 128

    @field_validator("large_crops")
    @classmethod
    def _has_a_pair(cls, crops: AreaCrops) -> AreaCrops:
        if crops.num < 2:
            raise ValueError(f"num {crops.num}: expected at least 2 crops, one of which predicts the other's cluster")
        return crops


class CropClustering(Clustering):
    """An encoder, whose last map is averaged over space, a projector, and clusters of crops."""

    def __init__(self, config: CropsConfig, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.crops = MultiCrop(config.large_crops, config.small_crops, config.augment, encoder.spatial_dims)
        self.crops.check_encoder(encoder.strides)
        self.encoder: Encoder = encoder
        self.projector = hidden_projector(encoder.channels[-1], config.hidden_dim, config.projector_dim)
        assert isinstance(config, SwappedCodes.Config | KMeansClusters.Config)
        self.clusters = clusters_of(config, config.projector_dim, config.large_crops.num, facts)

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Cut the large and the small crops, and augment each on its own."""
        return self.crops.views(batch, rng)

    def embed(self, views: Views) -> Float[Tensor, "v b d"]:
        """Return the embeddings of all crops."""
        return embed_crops(self.encoder, self.projector, views.images)
