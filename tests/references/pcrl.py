"""PCRL's contrasts and errors on images that are their own only map, slowly, in numpy float64."""

import numpy as np

from tests.references.c2l import found, mixed
from tests.references.embeddings import Weights, head, means, unit


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def decoded(maps: np.ndarray, w: Weights) -> np.ndarray:
    """Turn maps (b, c, *s) into voxels by one layer."""
    weight = w["decoder.out.weight"].reshape(len(w["decoder.out.bias"]), -1)
    voxels = np.einsum("kc,bc...->bk...", weight, maps)
    return sigmoid(voxels + w["decoder.out.bias"].reshape(1, -1, *[1] * (maps.ndim - 2)))


def weighted(maps: np.ndarray, moves: np.ndarray, w: Weights) -> np.ndarray:
    """Weight each channel by what the moves make of it."""
    return np.stack([
        image * sigmoid(weights).reshape(-1, *[1] * (maps.ndim - 2))
        for image, weights in zip(maps, head(moves, w, "attention"), strict=True)
    ])  # fmt: skip


def shared(a: np.ndarray, b: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return np.stack([share * x + (1 - share) * y for x, y, share in zip(a, b, shares, strict=True)])


def loss(
    images: list[np.ndarray], moves: np.ndarray, shares: np.ndarray, w: Weights, queue: np.ndarray, temperature: float
) -> float:
    """``images``: both views, both moved, both whole; ``shares``: of hybrids, plain and mixed, and of samples."""
    first, second, first_moved, second_moved, first_whole, second_whole = images
    hybrid, mixed_hybrid, share = shares.T
    taught = {name.removeprefix("teacher."): value for name, value in w.items() if name.startswith("teacher.")}
    mixed_first, mixed_second = mixed(first, share), mixed(second, share)
    key, mixed_key = (head(means(x), taught, "projector") for x in (second, mixed_second))
    query, mixed_query = (unit(head(means(x), w, "projector")) for x in (first, mixed_first))
    contrasts = [
        found(query, unit(key), queue, temperature),
        found(mixed_query, unit(mixed_key), queue, temperature),
        found(mixed_query, unit(mixed(key, share)), queue, temperature),
    ]
    own, other = (weighted(image, moves[:, view], w) for view, image in enumerate((first, second)))
    first_whole, second_whole = mixed(first_whole, share), mixed(second_whole, share)
    errors = [
        (decoded(own, w) - first_moved) ** 2,
        (decoded(shared(own, other, hybrid), w) - shared(first_moved, second_moved, hybrid)) ** 2,
        (decoded(mixed_first, w) - first_whole) ** 2,
        (
            decoded(shared(mixed_first, mixed_second, mixed_hybrid), w)
            - shared(first_whole, second_whole, mixed_hybrid)
        )
        ** 2,
    ]
    return float(np.mean(contrasts) + np.mean([error.mean() for error in errors]))
