"""TransVW's losses on images that are their own only map, sample by sample, and its words' instances by sorting."""

import math

import numpy as np
import torch
from torch import Tensor

from tests.references.pcrlv2 import Weights, normed


def restored(image: Tensor, w: Weights) -> Tensor:
    """Turn an image (c, *s) into voxels by one layer."""
    weight = w["decoder.out.weight"].flatten(1)
    flat = weight @ image.flatten(1) + w["decoder.out.bias"][:, None]
    return (1 / (1 + torch.exp(-flat))).view_as(image)


def error(seen: Tensor, whole: Tensor, w: Weights) -> Tensor:
    return torch.stack([((restored(x, w) - y) ** 2).mean() for x, y in zip(seen, whole, strict=True)]).mean()


def logits(images: Tensor, w: Weights) -> Tensor:
    """Convolve (with zeros beyond the border), normalise, cut off and average; then one layer."""
    weight, sides = w["hidden.0.weight"], images.shape[2:]
    padded = torch.nn.functional.pad(images, [1, 1] * len(sides))
    places = torch.zeros(len(images), len(weight), *sides, dtype=images.dtype)
    for offset in np.ndindex(*weight.shape[2:]):
        part = padded[(slice(None), slice(None), *(slice(o, o + s) for o, s in zip(offset, sides, strict=True)))]
        places = places + torch.einsum("kc,bc...->bk...", weight[(slice(None), slice(None), *offset)], part)
    return normed(places, w, "hidden.1").clamp(min=0).flatten(2).mean(2) @ w["head.weight"].T + w["head.bias"]


def loss(images: list[Tensor], words: list[int], instances: list[bool], w: Weights, discovered: bool) -> Tensor:
    """Add the error of crops, a hundredth of the cross-entropy, and that of whole samples before the discovery."""
    seen, crops, whole = images
    total = error(seen, crops, w)
    if not discovered:
        total = total + error(whole, whole, w)
    found = [
        torch.logsumexp(row, 0) - row[word]
        for row, word, told in zip(logits(seen, w), words, instances, strict=True)
        if told
    ]
    return total + 0.01 * torch.stack(found).mean()


def nearest(points: np.ndarray, references: np.ndarray, num: int) -> np.ndarray:
    """Sort the rows that are not 0 by their distance from each reference; mark the first ones."""
    found = np.zeros((len(points), len(references)), bool)
    known = [row for row in range(len(points)) if points[row].any()]
    for word, reference in enumerate(references):
        found[sorted(known, key=lambda row: math.dist(points[row], reference))[:num], word] = True
    return found
