"""Rubik's cube++, slowly: twists voxel by voxel, and the loss of one-layer networks in numpy float64."""

import itertools

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]


def twist(image: np.ndarray, twists: np.ndarray) -> np.ndarray:
    """Move every voxel of a cube (s, s, s), or a square, by the turns of its layers, axis by axis."""
    side, slabs = len(image), twists.shape[1]
    borders = [round(side * slab / slabs) for slab in range(slabs + 1)]
    for axis in range(image.ndim):
        out = np.full(image.shape, np.nan)
        others = [other for other in range(image.ndim) if other != axis]
        for voxel in itertools.product(range(side), repeat=image.ndim):
            slab = max(s for s in range(slabs) if borders[s] <= voxel[axis])
            goes = list(voxel)
            if image.ndim == 3:
                for _ in range(twists[axis, slab]):
                    first, second = (goes[other] for other in others)
                    goes[others[0]], goes[others[1]] = side - 1 - second, first
            elif twists[axis, slab]:
                goes[others[0]] = side - 1 - goes[others[0]]
            out[tuple(goes)] = image[voxel]
        image = out
    return image


def parts(twisted: np.ndarray, whole: np.ndarray, w: Weights) -> tuple[float, float, float, float]:
    """Return the error, the cross-entropy of real and of restored voxels, and of passing for real, of (b, 1, *s)."""
    layer, bias = w["decoder.out.weight"].item(), w["decoder.out.bias"].item()
    judge, threshold = w["discriminator.0.weight"].flatten(), w["discriminator.0.bias"].item()
    restored = layer * twisted + bias
    real = judge[0] * whole + judge[1] * twisted + threshold
    fake = judge[0] * restored + judge[1] * twisted + threshold
    return (
        float(((restored - whole) ** 2).mean()),
        float(np.log1p(np.exp(-real)).mean()),
        float(np.log1p(np.exp(fake)).mean()),
        float(np.log1p(np.exp(-fake)).mean()),
    )


def gradients(twisted: np.ndarray, whole: np.ndarray, w: Weights, weight: float, against: float) -> Weights:
    """Differentiate by each weight what its network minimises; the restoring one works against the discriminator."""

    def minimised(name: str, given: Weights) -> float:
        error, real, fake, passing = parts(twisted, whole, given)
        return real + fake if name.startswith("discriminator") else weight * error + against * passing

    return {
        name: differentiate(lambda x, name=name: minimised(name, {**w, name: x}), value, 1e-6)
        for name, value in w.items()
    }
