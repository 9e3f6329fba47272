"""RoIAlign: the features of regions of interest, sampled from the level of a pyramid that fits each region's size.

Paper:     He et al., "Mask R-CNN", ICCV 2017, section 3; levels as in Lin et al., "Feature Pyramid Networks for
           Object Detection", CVPR 2017, equation 1.
Reference: torchvision's ``roi_align`` with ``aligned=True``: a map's value i lies at i + 1/2, a region is divided
           into bins, a bin's feature is the mean of bilinear samples on an even grid inside it, and a sample more
           than a value beyond the border is 0. Levels as in open-mmlab/mmdetection 2.x,
           ``single_level_roi_extractor.py``: a region's side, the root of its area, is 14 to 28 values long on its
           level.
Variants:  samples per axis and bin: 2 as torchvision's Faster R-CNN, or 0 for as many as the bin has values, rounded
           up, as mmdetection and MP3D.
           No sample is held in memory: each bin is a weighted sum of the rows of a table, the values of all maps,
           which torch computes without writing down its summands (``embedding_bag``).
Shapes:    R regions, C channels, maps of L levels of B images, P x P bins, S samples per axis and bin.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from methods.detection.boxes import volumes
from methods.parts.precision import at_least_float32, full_precision

FEWEST_VALUES = 14
_TIE = 1e-6


def level_of(regions: Float[Tensor, "R 4"], strides: Sequence[int]) -> Int64[Tensor, " R"]:
    """Return the coarsest level on which a region is ``FEWEST_VALUES`` long, or the finest where there is none.

    ``strides`` are those of the levels in the image, finest first.
    """
    coarser = regions.new_tensor([FEWEST_VALUES * stride for stride in strides[1:]])
    return (volumes(regions).sqrt()[:, None] / coarser + _TIE >= 1).sum(dim=1)


@full_precision()
def roi_align(
    maps: Sequence[Float[Tensor, "B C _ _"]],
    strides: Sequence[int],
    regions: Float[Tensor, "R 4"],
    images: Int64[Tensor, " R"],
    size: int,
    samples: int,
) -> Float[Tensor, "R C P P"]:
    """Return ``size`` x ``size`` features of regions (in pixels) of images, each from the level of its size.

    The gradient reaches the maps, not the regions. ``samples`` is the number per axis and bin, 0 for adaptive.
    """
    table = torch.cat([at_least_float32(one).permute(0, 2, 3, 1).flatten(0, 2) for one in maps])
    if len(regions) == 0:
        return table[:0].reshape(0, table.shape[1], size, size)
    level, regions = level_of(regions, strides), regions.detach().to(table)
    shapes = torch.tensor([one.shape[2:] for one in maps], device=table.device)
    first = torch.tensor([0, *(len(one) * prod(one.shape[2:]) for one in maps[:-1])], device=table.device).cumsum(0)
    on_level = regions / table.new_tensor(strides)[level, None] - 0.5
    (rows, row_weights), (columns, column_weights) = (
        _axis_samples(on_level[:, axis::2], shapes[level, axis], size, samples) for axis in range(2)
    )
    height, width = shapes[level].T
    lines = (first[level] + images * height * width)[:, None, None] + rows * width[:, None, None]
    index = lines[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    bags = F.embedding_bag(
        index.flatten(3).flatten(0, 2), table, mode="sum", per_sample_weights=weights.flatten(3).flatten(0, 2)
    )
    return bags.view(len(regions), size, size, -1).permute(0, 3, 1, 2)


def _axis_samples(
    spans: Float[Tensor, "R 2"], lengths: Int64[Tensor, " R"], size: int, samples: int
) -> tuple[Int64[Tensor, "R P k"], Float[Tensor, "R P k"]]:
    """Return, along one axis, the k = 2S values that each bin takes, and their weights; they add up to 1 or less.

    ``spans`` are where regions begin and end, in values of their maps, whose ``lengths`` these are.
    """
    low, high = spans.T
    bins = (high - low) / size
    counts = torch.full_like(bins, samples) if samples else bins.ceil().clamp(min=0)
    most = samples or int(counts.max())
    steps = torch.arange(max(1, most), device=spans.device)
    within = (steps + 0.5) / counts.clamp(min=1)[:, None]
    starts = torch.arange(size, device=spans.device)[:, None]
    at = low[:, None, None] + (starts + within[:, None]) * bins[:, None, None]
    last = lengths[:, None, None] - 1
    counted = (steps < counts[:, None])[:, None] & (at >= -1) & (at <= last + 1)
    at = torch.minimum(at.clamp(min=0), last.to(at))
    below = at.floor()
    share = (at - below)[..., None]
    weights = torch.cat([1 - share, share], dim=-1) * (counted / counts.clamp(min=1)[:, None, None])[..., None]
    places = torch.stack([below.long(), torch.minimum(below.long() + 1, last)], dim=-1)
    return places.flatten(2), weights.flatten(2)
