"""Surfaces: how far apart the surfaces of two masks lie."""

import numpy as np
from jaxtyping import Bool, Float


def surface_distance(
    true: Bool[np.ndarray, "*s"], predicted: Bool[np.ndarray, "*s"], spacing_mm: Float[np.ndarray, " n"]
) -> float:
    """Return the average symmetric surface distance in mm; NaN where one of the masks is empty.

    A mask's surface is its voxels that touch, with a side, a voxel outside it or the border. Each has a distance to
    the nearest of the other mask's surface; the mean is over the voxels of both surfaces.
    """
    from scipy import ndimage

    if not true.any() or not predicted.any():
        return float("nan")
    # Distances between surfaces depend on nothing outside the box around both.
    box = ndimage.find_objects((true | predicted).astype(np.int8))[0]
    sides = [mask[box] for mask in (true, predicted)]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in sides]
    to_surface = [np.asarray(ndimage.distance_transform_edt(~surface, sampling=spacing_mm)) for surface in surfaces]
    return float(np.concatenate([to_surface[1][surfaces[0]], to_surface[0][surfaces[1]]]).mean())
