"""Jigsaw clustering's loss, slowly, in numpy float64, where the encoder's map is the montage."""

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]


def features(patches: np.ndarray) -> np.ndarray:
    """Return the means of patches (n, c, *s) over space."""
    return patches.reshape(*patches.shape[:2], -1).mean(2)


def loss(patches: np.ndarray, order: np.ndarray, w: Weights, temperature: float) -> float:
    """Return both losses' sum of patches (b, k, c, *s), which are shuffled in the order of numbers (b, k)."""
    samples, count = order.shape
    places = sorted(np.ndindex(samples, count), key=lambda place: order[place])
    shuffled = features(np.stack([patches[place] for place in places]))
    entropies, z = [], []
    for feature, (_, place) in zip(shuffled, places, strict=True):
        scores = w["place_head.weight"] @ feature + w["place_head.bias"]
        entropies.append(np.log(np.exp(scores).sum()) - scores[place])
        hidden = np.maximum(w["projector.0.weight"] @ feature + w["projector.0.bias"], 0)
        embedding = w["projector.2.weight"] @ hidden + w["projector.2.bias"]
        z.append(embedding / np.linalg.norm(embedding))
    found = []
    for i, (own, _) in enumerate(places):
        odds = {j: np.exp(z[i] @ z[j] / temperature) for j in range(len(z)) if j != i}
        same = [j for j in odds if places[j][0] == own]
        found.append(-np.mean([np.log(odds[j] / sum(odds.values())) for j in same]))
    return float(np.mean(entropies) + np.mean(found))


def gradients(patches: np.ndarray, order: np.ndarray, w: Weights, temperature: float) -> Weights:
    """Differentiate the loss by every weight."""
    return {
        name: differentiate(lambda x, name=name: loss(patches, order, {**w, name: x}, temperature), value, 1e-6)
        for name, value in w.items()
    }
