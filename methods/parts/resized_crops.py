"""Resized crops: crops of any size, resized to the one size that a network takes."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from data.views.batch import Batch


def cut_resized(batch: Batch, boxes: Int[np.ndarray, "v b 2 n"], size: tuple[int, ...]) -> Float[Tensor, "v b c *s"]:
    """Cut v boxes out of each sample, as float32 intensities on the batch's device, resized to one size.

    All boxes of a sample have the same size. A box of the wanted size is cut as it is stored; any other is resized
    (bi/tri)linearly, corner voxels onto corner voxels, as VoCo's released code does.
    """
    mode = "bilinear" if batch.spatial_dims == 2 else "trilinear"
    views = torch.empty((*boxes.shape[:2], batch.voxels.shape[1], *size), device=batch.voxels.device)
    for number, voxels in enumerate(batch.voxels):
        own = tuple((boxes[0, number, 1] - boxes[0, number, 0]).tolist())
        crops = torch.empty((len(boxes), batch.voxels.shape[1], *own), device=voxels.device)
        for crop, (low, high) in zip(crops, boxes[:, number].tolist(), strict=True):
            crop.copy_(voxels[(..., *(slice(a, b) for a, b in zip(low, high, strict=True)))])
        views[:, number] = crops if own == size else F.interpolate(crops, size, mode=mode, align_corners=True)
    return batch.intensities(views)
