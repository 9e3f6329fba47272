"""The losses of MoCo v2 and v3, slowly, in numpy float64; keys are constants."""

import numpy as np

from tests.references.embeddings import Weights, cross_entropy, head, means, unit


def embedded(images: list[np.ndarray], w: Weights, name: str, alone: int) -> list[np.ndarray]:
    """Pass the first ``alone`` images one by one through a head, the others together."""
    z = [head(means(image), w, name) for image in images[:alone]]
    if images[alone:]:
        rest = head(np.concatenate([means(image) for image in images[alone:]]), w, name)
        z += list(np.split(rest, len(images) - alone))
    return z


def v2_loss(images: list[np.ndarray], w: Weights, keys: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """All images but the second, which is the key's, find the key among those of the queue."""
    queries = [unit(z) for z in embedded([images[0], *images[2:]], w, "projector", 1)]
    found = []
    for q in queries:
        for sample, query in enumerate(q):
            candidates = [keys[sample], *queue]
            found.append(cross_entropy([query @ key / temperature for key in candidates], 0))
    return float(np.mean(found))


def v3_loss(images: list[np.ndarray], w: Weights, keys: list[np.ndarray], temperature: float) -> float:
    """Each prediction finds its sample's key of the other view among the batch's: 2 tau times the entropy, added."""
    q = [unit(head(z, w, "predictor")) for z in embedded(images, w, "projector", 2)]
    total = 0.0
    for target in range(2):
        found = [
            cross_entropy([query @ key / temperature for key in keys[target]], sample)
            for view in range(len(images))
            if view != target
            for sample, query in enumerate(q[view])
        ]
        total += 2 * temperature * float(np.mean(found))
    return total
