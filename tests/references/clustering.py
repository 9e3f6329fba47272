"""Codes, losses and spherical k-means as SwAV's paper and code describe them, slowly, in float64."""

import math

import numpy as np

from tests.references.differences import differentiate

Array = np.ndarray


def sinkhorn(scores: Array, epsilon: float, iterations: int) -> Array:
    """Alternate: every prototype receives 1 / K of all mass, every embedding 1 / B. Returns codes of sum 1."""
    num_samples, num_prototypes = scores.shape
    q = np.empty_like(scores)
    top = scores.max()
    for i in range(num_samples):
        for k in range(num_prototypes):
            q[i, k] = math.exp((scores[i, k] - top) / epsilon)
    q /= q.sum()
    for _ in range(iterations):
        for k in range(num_prototypes):
            q[:, k] /= num_prototypes * q[:, k].sum()
        for i in range(num_samples):
            q[i] /= num_samples * q[i].sum()
    return q * num_samples


def entropy(codes: Array) -> float:
    """Average the entropy of codes in nats."""
    return float(np.mean([-sum(p * math.log(p) for p in code if p > 0) for code in codes]))


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def swapped_loss(scores: Array, codes: Array, temperature: float, reduction: str) -> float:
    """Predict each coded crop's code from each other crop; scores are (crops, samples, prototypes)."""
    by_code = []
    for coded in range(len(codes)):
        losses = [
            -sum(codes[coded, i, k] * math.log(p) for k, p in enumerate(softmax(scores[crop, i] / temperature)))
            for crop in range(len(scores))
            for i in range(scores.shape[1])
            if crop != coded
        ]
        by_code.append(sum(losses) / len(losses))
    return sum(by_code) if reduction == "sum" else sum(by_code) / len(by_code)


def swapped_gradient(scores: Array, codes: Array, temperature: float, reduction: str) -> Array:
    return differentiate(lambda x: swapped_loss(x, codes, temperature, reduction), scores, 1e-6)


def cluster_loss(scores: Array, clusters: Array, temperature: float) -> float:
    """Average over heads, crops and samples the cross-entropy with the sample's cluster of that head."""
    losses = [
        -math.log(softmax(scores[head, crop, i] / temperature)[clusters[i, head]])
        for head, crop, i in np.ndindex(scores.shape[:3])
    ]
    return sum(losses) / len(losses)


def cluster_gradient(scores: Array, clusters: Array, temperature: float) -> Array:
    return differentiate(lambda x: cluster_loss(x, clusters, temperature), scores, 1e-6)


def nearest(point: Array, centroids: Array) -> int:
    """Return the centroid with the greatest dot product, the first of equals."""
    products = [sum(a * b for a, b in zip(point, centroid, strict=True)) for centroid in centroids]
    return products.index(max(products))


def spherical_kmeans(points: Array, centroids: Array, iterations: int) -> tuple[list[int], Array]:
    """Cluster points; one of zeros is left out (-100); an empty cluster keeps its centroid."""
    centroids = centroids.copy()
    for _ in range(iterations):
        found = [nearest(point, centroids) if point.any() else -100 for point in points]
        for k in range(len(centroids)):
            members = [point for point, cluster in zip(points, found, strict=True) if cluster == k]
            centre = sum(members) / len(members) if members else centroids[k]
            centroids[k] = centre / math.sqrt(sum(value * value for value in centre))
    return [nearest(point, centroids) if point.any() else -100 for point in points], centroids
