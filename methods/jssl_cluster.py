"""JSSL, stage 3: two views of a volume agree on its cluster, by a transformer that relates their slices.

Paper:     Nguyen et al., "Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive
           Clustering", AAAI 2023 (seed 000), "Clustering Agreement for 3D Volumes with Inter Deformable Attention",
           eq. 9 to 12.
Reference: duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive @ 2cc652e, ``ssl_swav_3D.py`` and
           ``ssl_deepcluster_3D.py``. The printed numbers probably came from it.
Variants:  each flag is a field of ``clusters`` and can be set on its own.
           swav                  paper                              released
               codes             together: eq. 2 codes all views    apart: the views one by one
               reduction         sum: eq. 11                        mean
           deepcluster_v2
               learn_after       None                               313: then gradients move the prototypes
           The paper gives no constants; they are the released ones: 3000 prototypes for SwAV, and three heads of 4
           for DeepCluster-v2. There is no projector: a volume's vector is the mean over its tokens.
Shapes:    B volumes, V views, D slices, F features of a token.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from data.views.augmentation import Augmentation
from data.views.batch import Batch
from data.views.rng import SampleRng
from data.views.transforms import JSSL
from methods.base import Facts, FrozenConfig, Views
from methods.clustering import Clustering, ClustersConfig, clusters_of
from methods.encoders import Encoder
from methods.encoders.slice_transformer import relating_slices
from methods.parts.precision import full_precision
from methods.parts.sizes import per_axis
from methods.parts.swapped_codes import SwappedCodes
from methods.parts.variants import with_flags
from methods.parts.whole_views import WholeViews

NUM_VIEWS = 2
# The flags of the clusters, by their name and by the variant.
_FOUR: dict[str, Any] = {"num_heads": 3, "num_prototypes": 4}
FLAGS: dict[str, dict[str, dict[str, Any]]] = {
    "swav": {
        "paper": {"codes": "together", "reduction": "sum"},
        "released": {"codes": "apart", "reduction": "mean"},
    },
    "deepcluster_v2": {
        "paper": {**_FOUR, "learn_after": None},
        "released": {**_FOUR, "learn_after": 313},
    },
}


class JSSLCluster(Clustering):
    """An encoder ``slice_transformer``, and clusters of volumes."""

    encoders: ClassVar[tuple[str, ...]] = ("slice_transformer",)

    class Config(FrozenConfig):
        """``variant`` fills in the flags of ``clusters`` that are not given; the completed config is kept.

        size   voxels per axis of a view, to which volumes are cut or padded
        """

        name: Literal["jssl_cluster"] = "jssl_cluster"
        variant: Literal["paper", "released"] = "paper"
        size: PositiveInt | tuple[PositiveInt, ...] = (64, 128, 128)
        augment: Augmentation = Augmentation(one_of=JSSL)
        clusters: Annotated[ClustersConfig, Field(discriminator="name")] = SwappedCodes.Config()

        @model_validator(mode="before")
        @classmethod
        def _completed(cls, fields: Any) -> Any:
            given = fields.get("clusters", {}) if isinstance(fields, dict) else None
            if not isinstance(given, dict):
                return fields
            name = given.get("name", "swav")
            flags = FLAGS.get(name, {})
            return with_flags(
                {**fields, "clusters": {"name": name, **given}},
                {key: {"clusters": each} for key, each in flags.items()},
            )

    def __init__(self, config: Config, encoder: Encoder, facts: Facts) -> None:
        super().__init__()
        self.config = config
        size = per_axis(config.size, encoder.spatial_dims, "method.size")
        relating_slices(encoder).check_size(size, "method.size")
        self.encoder: Encoder = encoder
        self.whole = WholeViews(size, config.augment, NUM_VIEWS)
        self.clusters = clusters_of(config.clusters, encoder.channels[-1], NUM_VIEWS, facts, "method.clusters")

    def views(self, batch: Batch, rng: SampleRng) -> Views:
        """Fit the volumes, and augment each view on its own."""
        return self.whole.views(batch, rng)

    def embed(self, views: Views) -> Float[Tensor, "v b f"]:
        """Return Z of eq. 10: the means over the tokens of volumes, of length 1; all views pass together."""
        transformer = relating_slices(self.encoder)
        tokens = transformer.attend(transformer.project(torch.cat(views.images)))
        with full_precision():
            return F.normalize(tokens.mean(1), dim=1).unflatten(0, (len(views.images), -1))
