"""BYOL's eq. 2, slowly, in numpy float64; the teacher's weights are constants."""

import numpy as np

from tests.references.embeddings import Weights, head, means, unit


def loss(images: list[np.ndarray], w: Weights, targets: list[np.ndarray]) -> float:
    """Add the two directions; with small crops, the mean over the views that predict a target.

    Small crops pass the heads' batch norm together in the projector, and one by one in the predictor.
    """
    small = [means(image) for image in images[2:]]
    together = head(np.concatenate(small), w, "projector") if small else np.zeros((0, 1))
    z = [head(means(image), w, "projector") for image in images[:2]]
    z += list(np.split(together, len(small))) if small else []
    p = [unit(head(one, w, "predictor")) for one in z]
    total = 0.0
    for target in range(2):
        others = [view for view in range(len(images)) if view != target]
        distances = [((p[view] - unit(targets[target])) ** 2).sum(axis=1).mean() for view in others]
        total += sum(distances) / len(distances)
    return float(total)
