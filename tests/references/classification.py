"""The classifier of proxy tasks and its cross-entropy, slowly, in plain loops and numpy float64, without dropout."""

import math

import numpy as np

from tests.references.differences import differentiate

BATCH_NORM_EPS = 1e-5
Weights = dict[str, np.ndarray]


def batch_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Normalise each column by its batch mean and biased variance."""
    out = np.empty_like(x)
    for column in range(x.shape[1]):
        values = x[:, column]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        out[:, column] = (values - mean) / math.sqrt(variance + BATCH_NORM_EPS) * weight[column] + bias[column]
    return out


def classify(x: np.ndarray, w: Weights) -> np.ndarray:
    """Linear, ReLU and batch norm twice, then linear."""
    for linear, norm in ((0, 2), (4, 6)):
        x = np.maximum(x @ w[f"head.{linear}.weight"].T + w[f"head.{linear}.bias"], 0)
        x = batch_norm(x, w[f"head.{norm}.weight"], w[f"head.{norm}.bias"])
    return x @ w["head.8.weight"].T + w["head.8.bias"]


def cross_entropy(logits: np.ndarray, labels: list[int]) -> float:
    """Average the negative logarithm of the softmax at the label."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        total -= row[label] - math.log(sum(math.exp(value) for value in row))
    return total / len(labels)


def loss(features: np.ndarray, labels: list[int], w: Weights) -> float:
    """Compute the loss of features (rows, f) that stand for one question each."""
    return cross_entropy(classify(features, w), labels)


def gradients(features: np.ndarray, labels: list[int], w: Weights, step: float = 1e-6) -> Weights:
    """Differentiate ``loss`` by every weight and by the features."""
    found = {
        name: differentiate(lambda x, name=name: loss(features, labels, {**w, name: x}), value, step)
        for name, value in w.items()
    }
    return {**found, "features": differentiate(lambda x: loss(x, labels, w), features, step)}
