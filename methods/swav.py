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

from typing import Any, Literal

from methods.clustering import CROPS, CropClustering, CropsConfig
from methods.parts.multi_crop import AreaCrops
from methods.parts.swapped_codes import SwappedCodes
from methods.parts.variants import completed_by

_LARGE: dict[str, Any] = {"num": 2, "area": (0.14, 1.0)}
_PAPER: dict[str, Any] = {**CROPS, "large_crops": _LARGE, "codes": "together", "reduction": "sum"}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "released": {**_PAPER, "small_crops": {**CROPS["small_crops"], "num": 6}, "codes": "apart", "reduction": "mean"},
}


class SwAV(CropClustering):
    """Crops of a sample predict each other's codes."""

    class Config(CropsConfig, SwappedCodes.Config):
        """``variant`` fills in the flags that are not given; the completed config is kept."""

        name: Literal["swav"] = "swav"
        variant: Literal["paper", "released"] = "paper"
        large_crops: AreaCrops = AreaCrops(**_LARGE)

        _completed = completed_by(VARIANTS)
