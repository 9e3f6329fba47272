"""SimSiam's loss, collapse coefficient and learning rate as the thesis prints them, slowly, in numpy float64.

Gradients are central differences, with the stopped side held at its value.
"""

import math

import numpy as np

from tests.references.differences import differentiate

BATCH_NORM_EPS = 1e-5
Weights = dict[str, np.ndarray]


def batch_norm(x: np.ndarray, weight: np.ndarray | float, bias: np.ndarray | float) -> np.ndarray:
    """Normalise each column by its batch mean and biased variance."""
    out = np.empty_like(x)
    for column in range(x.shape[1]):
        values = x[:, column]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        out[:, column] = (values - mean) / math.sqrt(variance + BATCH_NORM_EPS)
    return out * weight + bias


def project(images: np.ndarray, w: Weights) -> np.ndarray:
    """Mean over space, then three linear layers with batch norm; ReLU on all but the last, which has no affine."""
    z = images.reshape(*images.shape[:2], -1).mean(axis=2)
    for layer, norm in ((0, 1), (3, 4)):
        z = z @ w[f"projector.{layer}.weight"].T
        z = np.maximum(batch_norm(z, w[f"projector.{norm}.weight"], w[f"projector.{norm}.bias"]), 0)
    return batch_norm(z @ w["projector.6.weight"].T, 1.0, 0.0)


def predict(z: np.ndarray, w: Weights) -> np.ndarray:
    """Bottleneck layer with batch norm and ReLU, then a plain linear layer."""
    hidden = batch_norm(z @ w["predictor.0.weight"].T, w["predictor.1.weight"], w["predictor.1.bias"])
    return np.maximum(hidden, 0) @ w["predictor.3.weight"].T + w["predictor.3.bias"]


def negative_cosine(p: np.ndarray, z: np.ndarray) -> float:
    """D of eq. 4.1, averaged over the batch."""
    return -sum(a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(p, z, strict=True)) / len(p)


def loss(
    first: np.ndarray, second: np.ndarray, w: Weights, stopped: tuple[np.ndarray, np.ndarray] | None = None
) -> float:
    """Compute eq. 4.1; ``stopped`` are the embeddings behind the stop-gradient where they must not follow ``w``."""
    z1, z2 = project(first, w), project(second, w)
    fixed1, fixed2 = stopped or (z1, z2)
    return 0.5 * negative_cosine(predict(z1, w), fixed2) + 0.5 * negative_cosine(predict(z2, w), fixed1)


def gradients(first: np.ndarray, second: np.ndarray, w: Weights, step: float = 1e-6) -> Weights:
    """Differentiate ``loss`` by every weight and by both images."""
    stopped = project(first, w), project(second, w)
    by_weight = {
        name: differentiate(lambda x, name=name: loss(first, second, {**w, name: x}, stopped), value, step)
        for name, value in w.items()
    }
    by_image = {
        "first": differentiate(lambda x: loss(x, second, w, stopped), first, step),
        "second": differentiate(lambda x: loss(first, x, w, stopped), second, step),
    }
    return {**by_weight, **by_image}


def collapse(p: np.ndarray) -> float:
    """Compute eq. 4.3 with the unbiased standard deviation."""
    unit = np.stack([row / math.sqrt(row @ row) for row in p])
    deviations = []
    for column in unit.T:
        mean = sum(column) / len(column)
        deviations.append(math.sqrt(sum((v - mean) ** 2 for v in column) / (len(column) - 1)))
    return max(0.0, 1 - math.sqrt(p.shape[1]) * sum(deviations) / len(deviations))


def cosine_rates(first: float, last: float, num_steps: int) -> list[float]:
    """List the learning rate of every step of half a cosine, per iteration, without warm-up (Table 4.1)."""
    return [last + 0.5 * (first - last) * (1 + math.cos(math.pi * step / num_steps)) for step in range(num_steps)]
