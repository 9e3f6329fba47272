"""The losses of Barlow Twins, VICReg and VICRegL, slowly, in numpy float64."""

import math

import numpy as np

from tests.references.embeddings import Weights
from tests.references.moco import embedded
from tests.references.simsiam import batch_norm


def barlow_loss(images: list[np.ndarray], w: Weights, weight: float) -> float:
    """Eq. 1: the mean over the pairs of each of the two views with all others."""
    z = [batch_norm(one, 1.0, 0.0) for one in embedded(images, w, "projector", 2)]
    found = []
    for target in range(2):
        for view in range(len(z)):
            if view == target:
                continue
            total = 0.0
            for i in range(z[0].shape[1]):
                for j in range(z[0].shape[1]):
                    c = sum(z[view][:, i] * z[target][:, j]) / len(z[0])
                    total += (1 - c) ** 2 if i == j else weight * c**2
            found.append(total)
    return float(np.mean(found))


def hinge(z: np.ndarray) -> float:
    """VICReg's eq. 1 and 2 with gamma 1 and epsilon 1e-4."""
    found = []
    for values in z.T:
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        found.append(max(0.0, 1 - math.sqrt(variance + 1e-4)))
    return sum(found) / len(found)


def covariance(z: np.ndarray) -> float:
    """VICReg's eq. 3 and 4."""
    centred, total = z - z.mean(axis=0), 0.0
    for i in range(z.shape[1]):
        for j in range(z.shape[1]):
            if i != j:
                total += (sum(centred[:, i] * centred[:, j]) / (len(z) - 1)) ** 2
    return total / z.shape[1]


def vicreg_loss(
    images: list[np.ndarray], w: Weights, weights: tuple[float, float, float], variance_terms: str, distance: str
) -> float:
    """Eq. 6; with small crops, the mean of the distances to each of the two views, and twice the mean of sums."""
    z = embedded(images, w, "projector", 2)
    near = []
    for target in range(2):
        for view in range(len(z)):
            if view != target:
                squares = ((z[view] - z[target]) ** 2).sum(axis=1)
                near.append(squares.mean() / (z[0].shape[1] if distance == "mean" else 1))
    spread = np.mean([hinge(one) for one in z]) * (2 if variance_terms == "sum" else 1)
    shared = 2 * np.mean([covariance(one) for one in z])
    return float(weights[0] * np.mean(near) + weights[1] * spread + weights[2] * shared)
