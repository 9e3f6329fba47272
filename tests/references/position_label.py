"""Position label's loss, slowly, in numpy float64, where the encoder's map is the image."""

import math

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]


def loss(images: np.ndarray, w: Weights, half: bool) -> float:
    """Return the mean cross-entropy of the places of images (b, c, *s)."""
    step = 2 if half else 1
    total = []
    for sample in range(len(images)):
        for place, voxel in enumerate(np.ndindex(*images.shape[2:])):
            x = images[(sample, slice(None, None, step), *voxel)]
            hidden = w["head.0.weight"] @ x + w["head.0.bias"]
            active = np.array([h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
            scores = w["head.3.weight"] @ (w["head.2.weight"] @ active + w["head.2.bias"]) + w["head.3.bias"]
            total.append(np.log(np.exp(scores).sum()) - scores[place])
    return float(np.mean(total))


def gradients(images: np.ndarray, w: Weights, half: bool, step: float = 1e-6) -> Weights:
    """Differentiate the loss by every weight and by the images."""
    found = {
        name: differentiate(lambda x, name=name: loss(images, {**w, name: x}, half), value, step)
        for name, value in w.items()
    }
    return {**found, "images": differentiate(lambda x: loss(x, w, half), images, step)}
