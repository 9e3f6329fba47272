"""Models Genesis, slowly: curves point by point, windows one after the other, and the loss of a linear decoder."""

import itertools
import math

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]


def bezier(points: np.ndarray, value: float, steps: int = 200_000) -> float:
    """Return the ordinate of the curve of control points (2, 4) where its abscissa is nearest to a value."""
    t = np.linspace(0, 1, steps)
    x, y = (sum(math.comb(3, i) * t**i * (1 - t) ** (3 - i) * row[i] for i in range(4)) for row in points)
    return float(y[np.abs(x - value).argmin()])


def shuffled(image: np.ndarray, low: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Put the voxels of each window of an image (*s), in turn, in the order of its keys (windows, *longest)."""
    out = image.copy()
    for corner, length, key in zip(low, lengths, keys, strict=True):
        places = list(itertools.product(*(range(a, a + b) for a, b in zip(corner, length, strict=True))))
        ranks = [float(key[tuple(p - a for p, a in zip(place, corner, strict=True))]) for place in places]
        for place, rank in zip(places, np.argsort(ranks), strict=True):
            out[place] = image[places[rank]]
    return out


def loss(distorted: np.ndarray, whole: np.ndarray, w: Weights) -> float:
    """Return the mean squared error of images (b, c, *s) that a layer and a sigmoid restore voxel by voxel."""
    weight, bias = w["decoder.out.weight"].reshape(whole.shape[1], -1), w["decoder.out.bias"]
    total = 0.0
    for sample, *voxel in np.ndindex(whole.shape[0], *whole.shape[2:]):
        seen = np.array([distorted[(sample, channel, *voxel)] for channel in range(distorted.shape[1])])
        for channel in range(whole.shape[1]):
            restored = 1 / (1 + math.exp(-(weight[channel] @ seen + bias[channel])))
            total += (restored - whole[(sample, channel, *voxel)]) ** 2
    return total / whole.size


def gradients(distorted: np.ndarray, whole: np.ndarray, w: Weights, step: float = 1e-6) -> Weights:
    """Differentiate the loss by every weight."""
    return {
        name: differentiate(lambda x, name=name: loss(distorted, whole, {**w, name: x}), value, step)
        for name, value in w.items()
    }
