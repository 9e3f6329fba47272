"""LARS, LARC and AMSGrad on one tensor of weights, slowly, in numpy float64.

``gradients`` and ``rates`` hold one entry per step. Each returns the weights after every step.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def norm(values: np.ndarray) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in values.ravel()))


def lars(
    weights: np.ndarray,
    gradients: Sequence[np.ndarray],
    rates: Sequence[float],
    momentum: float,
    decay: float,
    trust: float,
) -> list[np.ndarray]:
    """Follow You, Gitman and Ginsburg's Algorithm 1, in which momentum adds up moves."""
    moved, after = np.zeros_like(weights), []
    for gradient, rate in zip(gradients, rates, strict=True):
        local = trust * norm(weights) / (norm(gradient) + decay * norm(weights))
        moved = momentum * moved + rate * local * (gradient + decay * weights)
        weights = weights - moved
        after.append(weights)
    return after


def larc(
    weights: np.ndarray,
    gradients: Sequence[np.ndarray],
    rates: Sequence[float],
    momentum: float,
    decay: float,
    trust: float,
    eps: float,
    clip: bool,
) -> list[np.ndarray]:
    """Rewrite each gradient as apex does, and hand it to SGD; clipped, the rate is the lower of two."""
    summed, after = None, []
    for gradient, rate in zip(gradients, rates, strict=True):
        if norm(weights) > 0 and norm(gradient) > 0:
            local = trust * norm(weights) / (norm(gradient) + norm(weights) * decay + eps)
            share = (min(local, rate) / rate if rate > 0 else 1.0) if clip else local
            gradient = share * (gradient + decay * weights)
        summed = gradient if summed is None else momentum * summed + gradient
        weights = weights - rate * summed
        after.append(weights)
    return after


def amsgrad(
    weights: np.ndarray,
    gradients: Sequence[np.ndarray],
    rates: Sequence[float],
    betas: tuple[float, float],
    eps: float = 1e-8,
) -> list[np.ndarray]:
    """Follow Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", ICLR 2018, with Adam's corrections."""
    first = second = largest = np.zeros_like(weights)
    after = []
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        largest = np.maximum(largest, second)
        corrected = np.sqrt(largest / (1 - betas[1] ** step)) + eps
        weights = weights - rate * first / (1 - betas[0] ** step) / corrected
        after.append(weights)
    return after


def moves(weights: np.ndarray, after: Sequence[np.ndarray]) -> list[float]:
    """Return the length of each step's move."""
    return [norm(new - old) for old, new in pairwise([weights, *after])]
