"""A trivial detector: what a network could read off images without learning anything about what they show."""

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def textures(count: int, size: tuple[int, ...], seed: int = 0, smoothed: int = 0) -> Tensor:
    """Return (count, 1, *size) uint8 noise of each image's own brightness and contrast, with nothing to recognise.

    ``smoothed`` voxels along every axis are averaged: then neighbours are alike, and borders continue each other.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, *(s + max(0, smoothed - 1) for s in size), generator=generator)
    if smoothed:
        pool = (F.avg_pool2d, F.avg_pool3d)[len(size) - 2]
        noise = pool(noise, smoothed, stride=1) * smoothed ** (len(size) / 2)
    each = (count, 1, *[1] * len(size))
    brightness = 90 + 70 * torch.rand(each, generator=generator)
    contrast = 5 + 20 * torch.rand(each, generator=generator)
    return (brightness + contrast * noise).clamp(0, 255).byte()


def intensity_cues(images: tuple[Tensor, ...]) -> np.ndarray:
    """Return, for each sample, mean, spread, blackness and the borders' means of each of its images."""
    cues = []
    for image in images:
        values = image.double()
        cues += [values.flatten(1).mean(1), values.flatten(1).std(1), (values == 0).double().flatten(1).mean(1)]
        for axis, end in itertools.product(range(2, image.ndim), (0, -1)):
            cues.append(values.select(axis, end).flatten(1).mean(1))
    return torch.stack(cues, dim=1).numpy()


def edge_cues(images: tuple[Tensor, ...]) -> np.ndarray:
    """Return, for each sample, how far facing borders of each two of its images differ, against all the others."""
    cues = []
    for first, second in itertools.permutations(images, 2):
        for axis in range(2, first.ndim):
            gap = first.double().select(axis, -1) - second.double().select(axis, 0)
            cues.append(gap.square().flatten(1).mean(1).clamp(min=1e-12).log())
    closeness = torch.stack(cues, dim=1).numpy()
    return closeness - closeness.mean(axis=1, keepdims=True)


def detect(cues: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Fit a linear detector on half of the samples; return its accuracy on the others, and what chance can reach.

    Chance is that of always naming one label, and three standard deviations more.
    """
    half, num_labels = len(labels) // 2, labels.max() + 1
    scaled = (cues - cues[:half].mean(0)) / (cues[:half].std(0) + 1e-9)
    design = np.concatenate([scaled, np.ones((len(cues), 1))], axis=1)
    ridge = design[:half].T @ design[:half] + np.eye(design.shape[1])
    weights = np.linalg.solve(ridge, design[:half].T @ np.eye(num_labels)[labels[:half]])
    accuracy = float(((design[half:] @ weights).argmax(1) == labels[half:]).mean())
    chance = np.bincount(labels).max() / len(labels)
    return accuracy, float(chance + 3 * np.sqrt(chance * (1 - chance) / (len(labels) - half)))
