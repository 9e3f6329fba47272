"""Heads of two-view methods on images averaged over space, slowly, in numpy float64."""

import math
from collections.abc import Callable

import numpy as np

from tests.references.differences import differentiate
from tests.references.simsiam import batch_norm

Weights = dict[str, np.ndarray]
Loss = Callable[[list[np.ndarray], Weights], float]


def head(z: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """Apply the linear layers and batch norms of a head, in their order, with a ReLU between linear layers.

    Batch norm without weights has no key, so it is given as ``NAME.K.plain``.
    """
    layers = sorted({int(key.split(".")[1]) for key in w if key.startswith(f"{name}.")})
    linear = [layer for layer in layers if w.get(f"{name}.{layer}.weight", np.zeros(1)).ndim == 2]
    for layer in layers:
        weight = w.get(f"{name}.{layer}.weight")
        if layer in linear:
            if layer != linear[0]:
                z = np.maximum(z, 0)
            assert weight is not None
            z = z @ weight.T + w.get(f"{name}.{layer}.bias", np.zeros(len(weight)))
        elif weight is None:
            z = batch_norm(z, 1.0, 0.0)
        else:
            z = batch_norm(z, weight, w[f"{name}.{layer}.bias"])
    return z


def means(images: np.ndarray) -> np.ndarray:
    """Average over space."""
    return images.reshape(*images.shape[:2], -1).mean(axis=2)


def unit(z: np.ndarray) -> np.ndarray:
    """Bring each row to length 1."""
    return np.stack([row / math.sqrt(row @ row) for row in z])


def cross_entropy(logits: list[float], own: int) -> float:
    """Compute -log of the softmax at ``own``."""
    top = max(logits)
    return math.log(sum(math.exp(each - top) for each in logits)) + top - logits[own]


def gradients(loss: Loss, images: list[np.ndarray], w: Weights, trained: list[str], step: float = 1e-6) -> Weights:
    """Differentiate a loss by every trained weight and by each image."""
    by_weight = {
        name: differentiate(lambda x, name=name: loss(images, {**w, name: x}), w[name], step) for name in trained
    }
    by_image = {
        f"image {number}": differentiate(
            lambda x, number=number: loss([*images[:number], x, *images[number + 1 :]], w), image, step
        )
        for number, image in enumerate(images)
    }
    return by_weight | by_image
