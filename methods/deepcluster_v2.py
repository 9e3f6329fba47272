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
           The first epoch, in which there are no clusters yet, is that of ``parts/kmeans_clusters.py``.
Shapes:    B samples, A large crops, V crops, H heads, C channels, *s spatial axes, d dimensions, K prototypes.
"""

from typing import Any, Literal

from methods.clustering import CROPS, CropClustering, CropsConfig
from methods.parts.kmeans_clusters import KMeansClusters
from methods.parts.multi_crop import AreaCrops
from methods.parts.variants import completed_by

_LARGE: dict[str, Any] = {"num": 2, "area": (0.08, 1.0)}
_PAPER: dict[str, Any] = {**CROPS, "large_crops": _LARGE, "learn_after": None}
VARIANTS: dict[str, dict[str, Any]] = {"paper": _PAPER, "released": {**_PAPER, "learn_after": 313}}


class DeepClusterV2(CropClustering):
    """Crops of a sample predict its clusters, which k-means finds anew after each epoch."""

    class Config(CropsConfig, KMeansClusters.Config):
        """``variant`` fills in the flags that are not given; the completed config is kept."""

        name: Literal["deepcluster_v2"] = "deepcluster_v2"
        variant: Literal["paper", "released"] = "paper"
        large_crops: AreaCrops = AreaCrops(**_LARGE)

        _completed = completed_by(VARIANTS)
