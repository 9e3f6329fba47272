"""Rubik's cube's loss, slowly, in numpy float64, where the encoder's map is the cube."""

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]


def loss(cubes: np.ndarray, labels: np.ndarray, turned: np.ndarray, w: Weights) -> float:
    """Return both losses' sum of cubes (v, b, f), permutations (b) and half-turns (b, v, t)."""
    entropies, turns = [], []
    for sample in range(cubes.shape[1]):
        features = np.concatenate([cube[sample] for cube in cubes])
        scores = w["permutation_head.weight"] @ features + w["permutation_head.bias"]
        entropies.append(np.log(np.exp(scores).sum()) - scores[labels[sample]])
        logits = w["turn_head.weight"] @ features + w["turn_head.bias"]
        for logit, truth in zip(logits, turned[sample].reshape(-1), strict=True):
            probability = 1 / (1 + np.exp(-logit))
            turns.append(-np.log(probability if truth else 1 - probability))
    return float(np.mean(entropies) + np.mean(turns))


def gradients(cubes: np.ndarray, labels: np.ndarray, turned: np.ndarray, w: Weights, step: float = 1e-6) -> Weights:
    """Differentiate the loss by every weight and by the cubes."""
    found = {
        name: differentiate(lambda x, name=name: loss(cubes, labels, turned, {**w, name: x}), value, step)
        for name, value in w.items()
    }
    return {**found, "cubes": differentiate(lambda x: loss(x, labels, turned, w), cubes, step)}
