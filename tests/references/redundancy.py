"""The losses of Barlow Twins, VICReg and VICRegL, slowly, in numpy float64."""

import math

import numpy as np

from tests.references.embeddings import Weights, head
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
    return float(np.maximum(0, 1 - np.sqrt(z.var(axis=0, ddof=1) + 1e-4)).mean())


def covariance(z: np.ndarray) -> float:
    """VICReg's eq. 3 and 4."""
    matrix = np.cov(z.T)
    return float((matrix[~np.eye(len(matrix), dtype=bool)] ** 2).sum() / len(matrix))


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


def matches(own: np.ndarray, other: np.ndarray, num: int) -> tuple[list[int], list[int]]:
    """List the ``num`` rows whose nearest row of the other array is nearest, in order, and these nearest rows."""
    nearest = [min((math.dist(a, b), j) for j, b in enumerate(other)) for a in own]
    chosen = sorted(sorted(range(len(own)), key=lambda i: nearest[i][0])[:num])
    return chosen, [nearest[i][1] for i in chosen]


def matched_terms(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Invariance, variance and covariance of (samples, matches, d); the latter two by match, means over both."""
    slots = range(first.shape[1])
    spread = [np.mean([hinge(z[:, slot]) for z in (first, second) for slot in slots])]
    shared = [np.mean([covariance(z[:, slot]) for z in (first, second) for slot in slots])]
    return np.array([((first - second) ** 2).mean(), *spread, *shared])


def vicregl_loss(
    images: list[np.ndarray],
    w: Weights,
    places: np.ndarray,
    orders: list[tuple[int, int]],
    nums: tuple[int, int, int],
    alpha: float,
    double: int,
    share: float,
) -> float:
    """VICReg's terms of whole views, and those of matched places: by place and by feature, in each of ``orders``.

    nums   matches by place forth and back, and by feature
    """
    z = embedded(images, w, "projector", 2)
    near = [((z[a] - z[b]) ** 2).mean() for b in range(2) for a in range(len(z)) if a != b]
    whole = np.array([np.mean(near), np.mean([hinge(one) for one in z]), np.mean([covariance(one) for one in z])])
    maps = []
    for image in images[:2]:
        by_place = image.reshape(*image.shape[:2], -1).transpose(0, 2, 1)
        maps.append(head(by_place.reshape(-1, image.shape[1]), w, "maps_projector").reshape(*by_place.shape[:2], -1))
    local = np.zeros(3)
    for forth, back in orders:
        for own, other, num in ((forth, back, nums[0]), (back, forth, nums[1])):
            for compared, count in ((maps, nums[2]), (list(places.swapaxes(0, 1)), num)):
                pairs = [matches(a, b, count) for a, b in zip(compared[own], compared[other], strict=True)]
                first = np.stack([maps[own][sample][chosen] for sample, (chosen, _) in enumerate(pairs)])
                second = np.stack([maps[other][sample][partner] for sample, (_, partner) in enumerate(pairs)])
                local += share * matched_terms(first, second) / 2 / len(orders)
    weights = np.array([25.0, 25.0 * double, 1.0 * double])
    return float(alpha * weights @ whole + (1 - alpha) * weights @ local)
