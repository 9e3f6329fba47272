"""ACS convolutions: each 2D kernel written into a cube of zeros, in the plane that it sees; and their gradients."""

from itertools import product

import numpy as np

from tests.references.resnet3d import Triple, convolve, windows


def view_of(channel: int, channels: int) -> int:
    """Return the view of an output channel: 0 axial, 1 coronal, 2 sagittal; the first views have one more."""
    sizes = [channels // 3 + (1 if view < channels % 3 else 0) for view in range(3)]
    return 0 if channel < sizes[0] else 1 if channel < sizes[0] + sizes[1] else 2


def as_cubes(weight: np.ndarray) -> np.ndarray:
    """Return kernels (o, i, k, k) as cubes (o, i, k, k, k) that are zero outside of one plane."""
    channels, _, side, _ = weight.shape
    cubes, middle = np.zeros((*weight.shape, side)), side // 2
    for channel in range(channels):
        view = view_of(channel, channels)
        if view == 0:
            cubes[channel, :, middle, :, :] = weight[channel]
        elif view == 1:
            cubes[channel, :, :, middle, :] = weight[channel]
        else:
            cubes[channel, :, :, :, middle] = weight[channel]
    return cubes


def acs_convolve(x: np.ndarray, weight: np.ndarray, stride: Triple) -> np.ndarray:
    return convolve(x, as_cubes(weight), stride)


def acs_gradients(
    x: np.ndarray, weight: np.ndarray, stride: Triple, upstream: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of ``sum(upstream * acs_convolve(x, weight, stride))`` in x and in the weight."""
    cubes, side = as_cubes(weight), weight.shape[-1]
    kernel, half = (side, side, side), side // 2
    of_x = np.zeros((*x.shape[:2], *(length + 2 * half for length in x.shape[2:])))
    of_cubes = np.zeros_like(cubes)
    for offset, seen in zip(product(*map(range, kernel)), windows(x, kernel, stride, 0.0), strict=True):
        of_cubes[(..., *offset)] = np.einsum("bodhw,bcdhw->oc", upstream, seen)
        for place in product(*map(range, upstream.shape[2:])):
            at = tuple(o + step * p for o, step, p in zip(offset, stride, place, strict=True))
            of_x[(slice(None), slice(None), *at)] += (
                upstream[(slice(None), slice(None), *place)] @ cubes[(..., *offset)]
            )
    of_weight = np.zeros_like(weight)
    for channel in range(len(weight)):
        planes = (of_cubes[channel, :, half], of_cubes[channel, :, :, half], of_cubes[channel, :, :, :, half])
        of_weight[channel] = planes[view_of(channel, len(weight))]
    inner = (slice(half, half + length) for length in x.shape[2:])
    return of_x[(slice(None), slice(None), *inner)], of_weight
