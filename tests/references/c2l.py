"""The three contrasts of C2L, slowly, in numpy float64; keys are constants."""

import numpy as np

from tests.references.embeddings import Weights, cross_entropy, head, means, unit
from tests.references.moco import v2_loss


def mixed(rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Mix each row with the next one, the last with the first."""
    return np.stack([a * rows[i] + (1 - a) * rows[(i + 1) % len(rows)] for i, a in enumerate(shares)])


def found(queries: np.ndarray, keys: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """Let each query find its key before those of the queue."""
    entropies = [
        cross_entropy([query @ candidate / temperature for candidate in (keys[sample], *queue)], 0)
        for sample, query in enumerate(queries)
    ]
    return float(np.mean(entropies))


def loss(
    images: list[np.ndarray],
    fixed: np.ndarray,
    w: Weights,
    keys: tuple[np.ndarray, np.ndarray],
    shares: np.ndarray,
    queue: np.ndarray,
    temperature: float,
) -> float:
    """Add a third of each contrast; ``keys`` are the teacher's outputs of the second view and of its mixtures.

    ``fixed`` is the first view, of which mixtures are made: they take no gradient.
    """
    query = unit(head(means(mixed(fixed, shares)), w, "projector"))
    plain = v2_loss(images, w, unit(keys[0]), queue, temperature)
    mixtures = found(query, unit(keys[1]), queue, temperature)
    of_keys = found(query, unit(mixed(keys[0], shares)), queue, temperature)
    return (plain + mixtures + of_keys) / 3
