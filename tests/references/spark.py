"""SparK's sparse maps, as if only visible voxels existed: places of an image are looked up one by one."""

import itertools

import numpy as np

Places = dict[tuple[int, ...], np.ndarray]


def visible_places(image: np.ndarray, visible: np.ndarray, block: int) -> Places:
    """Return the channels of each visible voxel of an image (c, *s); ``visible`` (*blocks)."""
    return {
        place: image[(slice(None), *place)].astype(float)
        for place in np.ndindex(image.shape[1:])
        if visible[tuple(p // block for p in place)]
    }


def convolved(images: list[Places], weight: np.ndarray, bias: np.ndarray, extent: tuple[int, ...]) -> list[Places]:
    """Convolve with kernels (o, i, *k) at each place that exists; what does not exist adds nothing."""
    half = weight.shape[2] // 2
    offsets = list(itertools.product(range(-half, half + 1), repeat=len(extent)))
    results = []
    for places in images:
        found = {}
        for place in places:
            total = bias.copy()
            for offset in offsets:
                near = tuple(p + o for p, o in zip(place, offset, strict=True))
                if near in places:
                    total += weight[(slice(None), slice(None), *(o + half for o in offset))] @ places[near]
            found[place] = total
        results.append(found)
    return results


def normalised(images: list[Places], weight: np.ndarray, bias: np.ndarray) -> list[Places]:
    """Batch norm over the places that exist."""
    rows = np.stack([value for places in images for value in places.values()])
    mean, variance = rows.mean(0), rows.var(0)
    return [
        {place: (value - mean) / np.sqrt(variance + 1e-5) * weight + bias for place, value in places.items()}
        for places in images
    ]


def pooled(images: list[Places], side: int) -> list[Places]:
    """Take the largest value of each cube; cubes do not cross the border of a block."""
    results = []
    for places in images:
        found: Places = {}
        for place, value in places.items():
            coarse = tuple(p // side for p in place)
            found[coarse] = np.maximum(found[coarse], value) if coarse in found else value
        results.append(found)
    return results


def dense(images: list[Places], extent: tuple[int, ...], channels: int, fill: np.ndarray | float = 0.0) -> np.ndarray:
    """Return maps (b, c, *extent), with ``fill`` at places that do not exist."""
    maps = np.empty((len(images), channels, *extent))
    for number, places in enumerate(images):
        for place in np.ndindex(extent):
            maps[(number, slice(None), *place)] = places.get(place, fill)
    return maps
