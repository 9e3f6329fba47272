"""Anchors: the boxes of a few shapes at every place of every level of a feature pyramid.

Paper:     Ren et al., "Faster R-CNN", NeurIPS 2015, section 3.1; one size per level as in Lin et al., "Feature
           Pyramid Networks for Object Detection", CVPR 2017, section 4.1.
Reference: open-mmlab/mmdetection 2.x, ``anchor_generator.py``, whose sides are the same: a side of the square anchor
           is scale * stride, and a ratio divides height by width at an unchanged area.
           MONAI's ``AnchorGenerator`` rounds the halves of sides, so that 22.6 x 11.3 becomes 22 x 12.
Variants:  none. mmdetection centres anchors on the corners of cells, i * stride; here they are centred on the cells,
           (i + 1/2) * stride, which is where RoIAlign places a map's values, and the same after a flip.
Shapes:    A anchors of a level: its places row by row, and at each place the ratios in their order.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def level_anchors(
    size: tuple[int, int], stride: int, scale: float, ratios: Sequence[float], like: Float[Tensor, "..."]
) -> Float[Tensor, "A 4"]:
    """Return the anchors of a map of this size, in pixels of the image, with the type and device of ``like``."""
    side = scale * stride
    halves = like.new_tensor([(side * ratio**0.5 / 2, side / ratio**0.5 / 2) for ratio in ratios])
    places = [(torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) * stride for length in size]
    centres = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1).reshape(-1, 1, 2)
    return torch.cat([centres - halves, centres + halves], dim=-1).flatten(0, 1)


def centred_in(anchors: Float[Tensor, "A 4"], window: Float[Tensor, "4"]) -> Tensor:
    """Tell which anchors have their centre inside a window."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    return ((centres >= window[:2]) & (centres < window[2:])).all(dim=1)
