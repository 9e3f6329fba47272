"""The losses of classification, slowly, sample by sample in numpy float64, on a linear head over averaged voxels."""

import math

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def single(logits: np.ndarray, target: int, weights: list[float]) -> float:
    """Weigh the negative logarithm of the softmax at the class."""
    return weights[target] * -math.log(math.exp(logits[target]) / sum(math.exp(x) for x in logits))


def ordinal(logits: np.ndarray, target: int, weights: list[float]) -> float:
    """Average over "grade 0 or more", "1 or more" ...: true up to the grade, false above."""
    terms = [-math.log(sigmoid(x) if k <= target else 1 - sigmoid(x)) for k, x in enumerate(logits)]
    return weights[target] * sum(terms) / len(terms)


def multi_label(logits: np.ndarray, target: set[int], weights: list[float]) -> float:
    """Average over the classes; one that the sample has counts by its weight."""
    terms = [
        weights[k] * -math.log(sigmoid(x)) if k in target else -math.log(1 - sigmoid(x)) for k, x in enumerate(logits)
    ]
    return sum(terms) / len(terms)


LOSSES = {"single": single, "ordinal": ordinal, "multi_label": multi_label}


def loss(kind: str, images: np.ndarray, targets: list, weights: list[float], head: Weights) -> float:
    """Compute the mean loss of images (b, c, *s)."""
    total = 0.0
    for image, target in zip(images, targets, strict=True):
        feature = np.array([channel.sum() / channel.size for channel in image])
        logits = np.array([sum(w * f for w, f in zip(row, feature, strict=True)) for row in head["weight"]])
        total += LOSSES[kind](logits + head["bias"], target, weights)
    return total / len(images)


def gradients(kind: str, images: np.ndarray, targets: list, weights: list[float], head: Weights) -> Weights:
    """Differentiate ``loss`` by the head's weights."""
    return {
        name: differentiate(lambda x, name=name: loss(kind, images, targets, weights, {**head, name: x}), value, 1e-6)
        for name, value in head.items()
    }
