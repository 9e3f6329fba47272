"""PGL's local consistency, slowly, in numpy float64; the teacher's maps are constants."""

import itertools
import math

import numpy as np

from tests.references.embeddings import Weights, head, unit


def by_place(image: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """Pass each place of an image (b, c, *s) through a head: (b, p, d)."""
    places = image.reshape(*image.shape[:2], -1).transpose(0, 2, 1)
    return head(places.reshape(-1, image.shape[1]), w, name).reshape(*places.shape[:2], -1)


def read_at(maps: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Read a map (*s, d) linearly at a place, from -1 to 1, last axis first; its border goes on beyond it."""
    sides = maps.shape[:-1]
    at = [min(max(((p + 1) * side - 1) / 2, 0), side - 1) for p, side in zip(place[::-1], sides, strict=True)]
    total = np.zeros(maps.shape[-1])
    for corner in itertools.product((0, 1), repeat=len(sides)):
        index = [min(math.floor(x) + up, side - 1) for x, up, side in zip(at, corner, sides, strict=True)]
        weights = [x - math.floor(x) if up else 1 - (x - math.floor(x)) for x, up in zip(at, corner, strict=True)]
        total += math.prod(weights) * maps[tuple(index)]
    return total


def loss(images: list[np.ndarray], w: Weights, taught: list[np.ndarray], places: np.ndarray) -> float:
    """Add both directions; a direction is the mean over the places that lie inside the other view."""
    total = 0.0
    for view in range(2):
        z = by_place(images[view], w, "projector")
        p = head(z.reshape(-1, z.shape[2]), w, "predictor").reshape(*z.shape[:2], -1)
        distances = []
        for sample in range(len(p)):
            target = taught[1 - view][sample].reshape(*images[0].shape[2:], -1)
            for number, place in enumerate(places[sample, view]):
                if np.abs(place).max() <= 1:
                    both = unit(np.stack([p[sample, number], read_at(target, place)]))
                    distances.append(2 - 2 * both[0] @ both[1])
        total += sum(distances) / len(distances)
    return total
