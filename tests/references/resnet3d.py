"""ResNet3D-18, its convolutions summed offset by offset, on arrays."""

from itertools import product

import numpy as np

Weights = dict[str, np.ndarray]
Triple = tuple[int, int, int]
EPSILON = 1e-5


def windows(x: np.ndarray, kernel: Triple, stride: Triple, fill: float) -> list[np.ndarray]:
    """Pad by half a kernel; return what each of the kernel's offsets sees, at every place that the stride visits."""
    half = [length // 2 for length in kernel]
    padded = np.pad(x, [(0, 0), (0, 0), *((h, h) for h in half)], constant_values=fill)
    sizes = [(length - 1) // step + 1 for length, step in zip(x.shape[2:], stride, strict=True)]
    return [
        padded[
            :,
            :,
            o[0] : o[0] + (sizes[0] - 1) * stride[0] + 1 : stride[0],
            o[1] : o[1] + (sizes[1] - 1) * stride[1] + 1 : stride[1],
            o[2] : o[2] + (sizes[2] - 1) * stride[2] + 1 : stride[2],
        ]
        for o in product(*map(range, kernel))
    ]


def convolve(x: np.ndarray, weight: np.ndarray, stride: Triple) -> np.ndarray:
    kernel = weight.shape[2:]
    seen = windows(x, kernel, stride, 0.0)
    return sum(
        np.einsum("oc,bcdhw->bodhw", weight[(..., *offset)], part)
        for offset, part in zip(product(*map(range, kernel)), seen, strict=True)
    )


def normalise(x: np.ndarray, weights: Weights, name: str, groups: int | None) -> np.ndarray:
    """Normalise by running statistics, or with ``groups`` by those of each image's groups of channels."""
    shape = (1, -1, 1, 1, 1)
    if groups is None:
        mean, variance = (weights[f"{name}.{key}"].reshape(shape) for key in ("running_mean", "running_var"))
    else:
        grouped = x.reshape(len(x), groups, -1)
        repeated = x.shape[1] // groups
        mean, variance = (
            np.repeat(value, repeated, axis=1).reshape(*x.shape[:2], 1, 1, 1)
            for value in (grouped.mean(2), grouped.var(2))
        )
    normal = (x - mean) / np.sqrt(variance + EPSILON)
    return normal * weights[f"{name}.weight"].reshape(shape) + weights[f"{name}.bias"].reshape(shape)


def resnet3d_18(
    x: np.ndarray, weights: Weights, strides: tuple[Triple, ...], groups: int | None = None
) -> list[np.ndarray]:
    """Return the maps of the stem and of the four stages; ``strides`` are those of stem, pool and stages.

    A pool without strides is left out. Where channels stay the same, a strided block adds its subsampled input.
    """
    x = np.maximum(normalise(convolve(x, weights["conv1.weight"], strides[0]), weights, "bn1", groups), 0)
    maps = [x]
    if strides[1] != (1, 1, 1):
        x = np.max(windows(x, (3, 3, 3), strides[1], -np.inf), axis=0)
    for stage, block in product(range(1, 5), range(2)):
        name, stride = f"layer{stage}.{block}", strides[stage + 1] if block == 0 else (1, 1, 1)
        residual = x[:, :, :: stride[0], :: stride[1], :: stride[2]]
        if f"{name}.downsample.0.weight" in weights:
            residual = convolve(x, weights[f"{name}.downsample.0.weight"], stride)
            residual = normalise(residual, weights, f"{name}.downsample.1", groups)
        x = np.maximum(
            normalise(convolve(x, weights[f"{name}.conv1.weight"], stride), weights, f"{name}.bn1", groups), 0
        )
        x = normalise(convolve(x, weights[f"{name}.conv2.weight"], (1, 1, 1)), weights, f"{name}.bn2", groups)
        x = np.maximum(x + residual, 0)
        if block == 1:
            maps.append(x)
    return maps
