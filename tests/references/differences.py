"""Gradients by central differences, for references that know no autograd."""

from collections.abc import Callable

import numpy as np


def differentiate(function: Callable[[np.ndarray], float], at: np.ndarray, step: float) -> np.ndarray:
    """Differentiate a function of an array by each of its elements."""
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient
