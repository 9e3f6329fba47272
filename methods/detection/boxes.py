"""Box arithmetic: overlap, clipping, and the deltas from one box to another; safe where there are no boxes.

Paper:     Girshick et al., "Rich feature hierarchies for accurate object detection", CVPR 2014, appendix C.
Reference: open-mmlab/mmdetection 2.x, ``delta_xywh_bbox_coder.py``: without + 1 in widths, and no side grows by more
           than 1000 / 16.
           MONAI's ``box_iou`` and ``BoxCoder`` compute the same in float32 only, and look at values to refuse some:
           float64 cannot pass, nor can tensors without values, and a GPU has to wait.
Variants:  none.
Shapes:    N and M boxes of m = 2n numbers each, in n axes.
"""

from math import log

import torch
from jaxtyping import Float
from torch import Tensor

MOST_GROWTH = log(1000 / 16)
LEAST_SIDE = 1e-6
Deviations = tuple[float, float]
"""What deltas of centres, and of the logarithms of sides, are divided by."""


def sides(boxes: Float[Tensor, "N m"]) -> Float[Tensor, "N n"]:
    """Return the length of each side; below 0 where a box's corners are the wrong way round."""
    low, high = boxes.chunk(2, dim=-1)
    return high - low


def volumes(boxes: Float[Tensor, "N m"]) -> Float[Tensor, " N"]:
    """Return the area or volume of each box, 0 for a box without an inside."""
    return sides(boxes).clamp(min=0).prod(dim=-1)


def iou_matrix(first: Float[Tensor, "N m"], second: Float[Tensor, "M m"]) -> Float[Tensor, "N M"]:
    """Compute intersection over union of every pair; 0 where a box has no inside."""
    n = first.shape[1] // 2
    union = volumes(first)[:, None] + volumes(second)
    shared = torch.ones_like(union)
    for axis in range(n):
        reach = torch.minimum(first[:, None, n + axis], second[:, n + axis])
        shared.mul_(reach.sub_(torch.maximum(first[:, None, axis], second[:, axis])).clamp_(min=0))
    return shared.div_(union.sub_(shared).clamp_(min=torch.finfo(union.dtype).tiny))


def clip(boxes: Float[Tensor, "N m"], window: Float[Tensor, " m"]) -> Float[Tensor, "N m"]:
    """Cut boxes at the border of a window; what lies outside becomes a box without an inside on the border."""
    low, high = window.chunk(2)
    return torch.cat([corner.clamp(low, high) for corner in boxes.chunk(2, dim=1)], dim=1)


def encode(
    boxes: Float[Tensor, "N m"], anchors: Float[Tensor, "N m"], deviations: Deviations
) -> Float[Tensor, "N m"]:
    """Return the deltas that take each anchor to its box: of its centre, in sides, then of its sides, in logarithms.

    A box without an inside gets finite deltas that mean nothing.
    """
    length, anchor_length = (sides(one).clamp(min=LEAST_SIDE) for one in (boxes, anchors))
    shift = (_centres(boxes) - _centres(anchors)) / anchor_length
    return torch.cat([shift / deviations[0], (length / anchor_length).log() / deviations[1]], dim=1)


def decode(
    deltas: Float[Tensor, "N m"], anchors: Float[Tensor, "N m"], deviations: Deviations
) -> Float[Tensor, "N m"]:
    """Return the boxes to which deltas take the anchors, the inverse of ``encode`` where no side grows too much."""
    shift, growth = deltas.chunk(2, dim=1)
    length = sides(anchors)
    centre = _centres(anchors) + shift * deviations[0] * length
    half = (growth * deviations[1]).clamp(-MOST_GROWTH, MOST_GROWTH).exp() * length / 2
    return torch.cat([centre - half, centre + half], dim=1)


def _centres(boxes: Float[Tensor, "N m"]) -> Float[Tensor, "N n"]:
    low, high = boxes.chunk(2, dim=1)
    return (low + high) / 2
