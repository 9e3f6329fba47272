"""FeaturePyramid: maps of one width, in which coarse ones pass on to finer ones what they have seen.

Paper:     Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3; with group norm as in Wu
           and He, "Group Normalization", ECCV 2018, section 4.2.
Reference: open-mmlab/mmdetection 2.x, ``fpn.py``: nearest neighbours on the way down, weights as Xavier and Bengio's,
           and one more level, the coarsest's every other value, for anchors only.
           The network is MONAI's ``FeaturePyramidNetwork``, with norms added where they are asked for.
Variants:  norm   none, or group norm after each convolution, which then has no bias
Shapes:    maps of L levels, finest first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    pass


class FeaturePyramid(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution for each level of an encoder, and one more level without weights."""

    def __init__(self, in_channels: Sequence[int], channels: int, norm_groups: int | None) -> None:
        from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        self.network: FeaturePyramidNetwork = FeaturePyramidNetwork(2, [*in_channels], channels, LastLevelMaxPool(2))
        for block in (self.network.inner_blocks, self.network.layer_blocks):
            for place, convolution in enumerate(block):
                assert isinstance(convolution, nn.Conv2d)
                nn.init.xavier_uniform_(convolution.weight)
                if norm_groups is not None:
                    convolution.bias = None
                    block[place] = nn.Sequential(convolution, nn.GroupNorm(norm_groups, channels))

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Return the levels of the encoder, finest first, and the additional one."""
        return [*self.network(OrderedDict((str(place), one) for place, one in enumerate(maps))).values()]
