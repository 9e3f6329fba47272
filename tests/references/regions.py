"""Losses and scores of regions that may overlap, slowly, voxel by voxel, in plain Python floats."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tests.references.differences import differentiate

SMOOTH = 1e-5  # MONAI's, above and below the line


def inside(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Tell for each voxel whether its label value is one of a region's."""
    return np.array([float(int(label) in values) for label in labels.ravel()]).reshape(labels.shape)


def dice_loss(logits: np.ndarray, labels: np.ndarray, regions: Sequence[Sequence[int]]) -> float:
    """Average 1 - Dice of the probabilities over images and regions."""
    losses = []
    for image, label in zip(logits, labels, strict=True):
        for plane, values in zip(image, regions, strict=True):
            common = total = 0.0
            for logit, truth in zip(plane.ravel(), inside(label, values).ravel(), strict=True):
                probability = 1 / (1 + math.exp(-logit))
                common += probability * truth
                total += probability + truth
            losses.append(1 - (2 * common + SMOOTH) / (total + SMOOTH))
    return sum(losses) / len(losses)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, regions: Sequence[Sequence[int]]) -> float:
    """Average the negative logarithm of the probability that is given to what is true."""
    total = 0.0
    for image, label in zip(logits, labels, strict=True):
        for plane, values in zip(image, regions, strict=True):
            for logit, truth in zip(plane.ravel(), inside(label, values).ravel(), strict=True):
                probability = 1 / (1 + math.exp(-logit))
                total -= math.log(probability if truth else 1 - probability)
    return total / logits.size


def loss(logits: np.ndarray, labels: np.ndarray, regions: Sequence[Sequence[int]]) -> float:
    """Add both."""
    return dice_loss(logits, labels, regions) + cross_entropy(logits, labels, regions)


def gradient(logits: np.ndarray, labels: np.ndarray, regions: Sequence[Sequence[int]]) -> np.ndarray:
    """Differentiate the loss by each logit."""
    return differentiate(lambda x: loss(x, labels, regions), logits, 1e-5)


def dice_and_iou(labels: np.ndarray, predicted: np.ndarray, values: Sequence[int]) -> tuple[float, float] | None:
    """Compare a region's voxels, as sets of indices, with the predicted ones; None where there are none at all."""
    true = {tuple(index) for index in np.argwhere(inside(labels, values))}
    said = {tuple(index) for index in np.argwhere(predicted)}
    if not true | said:
        return None
    return 2 * len(true & said) / (len(true) + len(said)), len(true & said) / len(true | said)


def mean_scores(
    labels: np.ndarray, predicted: np.ndarray, regions: Mapping[str, Sequence[int]], nothing: float | None
) -> dict[str, tuple[float, float]]:
    """Average Dice and IoU of each region over volumes; none at all scores ``nothing``, or not at all (None)."""
    means = {}
    for number, (name, values) in enumerate(regions.items()):
        pairs = [dice_and_iou(one, said[number], values) for one, said in zip(labels, predicted, strict=True)]
        scored = [pair or (nothing, nothing) for pair in pairs if pair is not None or nothing is not None]
        if scored:
            means[name] = (sum(d for d, _ in scored) / len(scored), sum(i for _, i in scored) / len(scored))
    return means
