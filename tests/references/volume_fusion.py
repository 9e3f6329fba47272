"""Volume fusion, slowly: crops are fused, and levels told by a linear layer, voxel by voxel, in numpy float64."""

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]
SMOOTH = 1e-5


def fused(background: np.ndarray, foreground: np.ndarray, levels: np.ndarray, num_levels: int) -> np.ndarray:
    """Mix images (b, c, *s) as maps of levels (b, *s) say."""
    out = np.empty_like(background)
    for sample, channel, *voxel in np.ndindex(*background.shape):
        share = levels[(sample, *voxel)] / num_levels
        near, far = background[(sample, channel, *voxel)], foreground[(sample, channel, *voxel)]
        out[(sample, channel, *voxel)] = share * far + (1 - share) * near
    return out


def loss(images: np.ndarray, levels: np.ndarray, w: Weights) -> float:
    """Return Dice loss and cross-entropy of fused images (b, c, *s)."""
    weight, bias = w["decoder.out.weight"][..., *[0] * (images.ndim - 2)], w["decoder.out.bias"]
    entropies, dices = [], []
    for image, own in zip(images, levels, strict=True):
        overlap, predicted, true = (np.zeros(len(bias)) for _ in range(3))
        for voxel in np.ndindex(*own.shape):
            scores = weight @ image[:, *voxel] + bias
            probabilities = np.exp(scores) / np.exp(scores).sum()
            entropies.append(-np.log(probabilities[own[voxel]]))
            predicted += probabilities
            true[own[voxel]] += 1
            overlap[own[voxel]] += probabilities[own[voxel]]
        dices += (1 - (2 * overlap + SMOOTH) / (predicted + true + SMOOTH)).tolist()
    return float(np.mean(dices) + np.mean(entropies))


def gradients(images: np.ndarray, levels: np.ndarray, w: Weights, step: float = 1e-6) -> Weights:
    """Differentiate the loss by every weight."""
    return {
        name: differentiate(lambda x, name=name: loss(images, levels, {**w, name: x}), value, step)
        for name, value in w.items()
    }
