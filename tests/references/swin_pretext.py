"""Swin pretext's loss, slowly, in numpy float64, where the encoder's map is the image and the decoder one layer."""

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]


def contrast(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Return NT-Xent of pairs (n, d): of each of 2 n vectors, its partner against all vectors but itself."""
    everyone = [row / np.linalg.norm(row) for row in (*first, *second)]
    total = 0.0
    for i, row in enumerate(everyone):
        partner = (i + len(first)) % len(everyone)
        odds = [np.exp(row @ other / temperature) for j, other in enumerate(everyone) if j != i]
        total -= np.log(np.exp(row @ everyone[partner] / temperature) / sum(odds))
    return total / len(everyone)


def loss(
    seen: np.ndarray, whole: np.ndarray, turns: np.ndarray, w: Weights, tokens: str, temperature: float
) -> float:
    """Return the three losses' sum of versions (crops, 2, b, c, *s) with turns (b, crops * 2)."""
    crops, _, samples, channels = seen.shape[:4]
    weight = w["decoder.out.weight"].reshape(channels, channels)
    told, embedded = {}, {}
    errors, entropies = [], []
    for place in np.ndindex(crops, 2, samples):
        flat, target = seen[place].reshape(channels, -1), whole[place].reshape(channels, -1)
        errors += np.abs(weight @ flat + w["decoder.out.bias"][:, None] - target).flatten().tolist()
        first, second = (flat.mean(1), flat.mean(1)) if tokens == "mean" else (flat[:, 0], flat[:, 1])
        told[place] = w["turn_head.weight"] @ first + w["turn_head.bias"]
        embedded[place] = w["contrast_head.weight"] @ second + w["contrast_head.bias"]
        crop, version, sample = place
        scores = np.exp(told[place])
        entropies.append(-np.log(scores[turns[sample, 2 * crop + version]] / scores.sum()))
    versions = [
        np.stack([embedded[crop, version, sample] for crop in range(crops) for sample in range(samples)])
        for version in range(2)
    ]
    return float(np.mean(errors) + np.mean(entropies)) + contrast(*versions, temperature)


def gradients(
    seen: np.ndarray, whole: np.ndarray, turns: np.ndarray, w: Weights, tokens: str, temperature: float
) -> Weights:
    """Differentiate the loss by every weight."""
    return {
        name: differentiate(
            lambda x, name=name: loss(seen, whole, turns, {**w, name: x}, tokens, temperature), value, 1e-6
        )
        for name, value in w.items()
    }
