"""SimMIM's loss, slowly, in plain loops and numpy float64; the encoder takes the mean of each 2 voxels a side."""

import itertools

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]
SIDE = 2


def loss(whole: np.ndarray, hidden: np.ndarray, block: int, w: Weights) -> float:
    """Return the mean absolute error over hidden voxels of images (b, c, *s); ``hidden`` (b, *blocks)."""
    samples, channels, *extent = whole.shape
    filled = whole.copy()
    for sample, *voxel in np.ndindex(samples, *extent):
        if hidden[(sample, *(v // block for v in voxel))]:
            for channel in range(channels):
                filled[(sample, channel, *voxel)] = w["token"][channel]
    total, count = 0.0, 0
    offsets = list(itertools.product(range(SIDE), repeat=len(extent)))
    for sample, *voxel in np.ndindex(samples, *extent):
        if not hidden[(sample, *(v // block for v in voxel))]:
            continue
        corner = [v // SIDE * SIDE for v in voxel]
        cube = [tuple(c + o for c, o in zip(corner, offset, strict=True)) for offset in offsets]
        feature = [np.mean([filled[(sample, channel, *cell)] for cell in cube]) for channel in range(channels)]
        place = offsets.index(tuple(v % SIDE for v in voxel))
        for channel in range(channels):
            row = channel * len(offsets) + place
            predicted = w["pixels.layer.weight"][row] @ feature + w["pixels.layer.bias"][row]
            total += abs(predicted - whole[(sample, channel, *voxel)])
            count += 1
    return total / count


def gradients(whole: np.ndarray, hidden: np.ndarray, block: int, w: Weights, step: float = 1e-6) -> Weights:
    """Differentiate the loss by every weight."""
    return {
        name: differentiate(lambda x, name=name: loss(whole, hidden, block, {**w, name: x}), value, step)
        for name, value in w.items()
    }
