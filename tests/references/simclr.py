"""SimCLR's eq. 1 and algorithm 1, slowly, in numpy float64."""

import numpy as np

from tests.references.embeddings import Weights, cross_entropy, head, means, unit


def loss(images: list[np.ndarray], w: Weights, temperature: float, reduction: str, together: bool = True) -> float:
    """Each of a sample's views, but the target itself, finds the target among both views of all samples.

    The two views pass the head together, as do the small crops.
    """
    features = [means(image) for image in images]
    groups = [np.concatenate(features[:2])] + ([np.concatenate(features[2:])] if features[2:] else [])
    z = unit(np.concatenate([head(group, w, "projector") for group in groups]))
    z = z.reshape(len(images), len(features[0]), -1)
    found = []
    for target in range(2):
        for view in range(len(images)):
            if view == target:
                continue
            for sample, anchor in enumerate(z[view]):
                own = anchor @ z[target][sample] / temperature
                others = [
                    anchor @ z[large][other] / temperature
                    for large in range(2)
                    for other in range(len(z[0]))
                    if other != sample
                ]
                found.append(cross_entropy([own, *others], 0))
    return float(np.mean(found)) * (2 if reduction == "sum" else 1)
