"""Exemplar's triplets, slowly, in plain loops and numpy float64; one function per version.

Each follows the equation or what is known of the code, without the flags of ``methods/exemplar.py``.
"""

import math

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]


def embed(x: np.ndarray, w: Weights, head: int) -> np.ndarray:
    """One layer and a sigmoid."""
    return 1 / (1 + np.exp(-(w[f"heads.{head}.0.weight"] @ x + w[f"heads.{head}.0.bias"])))


def paper(original: np.ndarray, transformed: np.ndarray, w: Weights) -> float:
    """Return eq. 3 with the L2 distance and margin 1; negatives are the samples that follow."""
    total = 0.0
    for i in range(len(original)):
        z, positive = embed(original[i], w, 0), embed(transformed[i], w, 0)
        negative = embed(original[(i + 1) % len(original)], w, 0)
        total += max(0.0, math.dist(z, positive) - math.dist(z, negative) + 1)
    return total / len(original)


def released(original: np.ndarray, transformed: np.ndarray, w: Weights) -> float:
    """Return the released loss: a head for each role, mean squares, and the transformed sample as the anchor."""
    total = 0.0
    for i in range(len(original)):
        anchor, positive = embed(transformed[i], w, 0), embed(original[i], w, 1)
        negative = embed(original[(i + 1) % len(original)], w, 2)
        near, far = np.mean((anchor - positive) ** 2), np.mean((anchor - negative) ** 2)
        total += max(0.0, float(near - far) + 1)
    return total / len(original)


LOSSES = {"paper": paper, "released": released}


def gradients(version: str, images: np.ndarray, w: Weights, step: float = 1e-6) -> Weights:
    """Differentiate a version's loss by every weight and by the images (2, samples, f), originals first."""
    loss = LOSSES[version]
    found = {
        name: differentiate(lambda x, name=name: loss(*images, {**w, name: x}), value, step)
        for name, value in w.items()
    }
    return {**found, "images": differentiate(lambda x: loss(*x, w), images, step)}
