"""Box maps: boxes drawn inside crops, and the voxels that they cover, on the crops' device."""

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from data.views.rng import SampleRng, scale_words


def draw_boxes(
    size: tuple[int, ...],
    shortest: tuple[int, ...],
    longest: tuple[int, ...],
    most: int,
    margin: int,
    rng: SampleRng,
) -> Int[np.ndarray, "b k 2 n"]:
    """Draw ``most`` boxes per sample: lengths uniform from ``shortest`` to ``longest``, and then their places.

    Boxes stay ``margin`` voxels away from the border, or less where there is less room.
    """
    spread = np.array(longest) - shortest + 1
    lengths = np.array(shortest) + scale_words(rng.fold("lengths").words(most, len(size)), spread)
    room = np.array(size) - lengths
    kept = np.minimum(margin, room // 2)
    low = kept + scale_words(rng.fold("places").words(most, len(size)), room - 2 * kept + 1)
    return np.stack([low, low + lengths], axis=2)


def draw_clipped_boxes(
    size: tuple[int, ...], shortest: tuple[int, ...], longest: tuple[int, ...], most: int, rng: SampleRng
) -> Int[np.ndarray, "b k 2 n"]:
    """Draw ``most`` boxes per sample that may reach beyond the far borders, where they are cut off.

    Lengths are uniform from ``shortest`` to less than ``longest``, low corners up to ``shortest`` before the border.
    """
    low = scale_words(rng.fold("places").words(most, len(size)), np.maximum(1, np.array(size) - shortest))
    spread = np.maximum(1, np.array(longest) - shortest)
    lengths = np.maximum(1, shortest + scale_words(rng.fold("lengths").words(most, len(size)), spread))
    return np.stack([low, np.minimum(low + lengths, size)], axis=2)


def first_successes(most: int, probability: float, rng: SampleRng) -> Int[np.ndarray, " b"]:
    """Draw how often in a row something of this probability happens, at most ``most`` times."""
    return np.cumprod(rng.uniform(most) < probability, axis=1).sum(axis=1)


def fill_boxes(
    size: tuple[int, ...],
    boxes: Int[np.ndarray, "b k 2 n"],
    values: Int[np.ndarray, "b k"],
    device: torch.device,
) -> Int64[Tensor, "b *s"]:
    """Return maps of 0 in which each box has its value, later boxes over earlier ones; -1 leaves a box out."""
    maps = torch.zeros((len(boxes), *size), dtype=torch.int64, device=device)
    for own, corners, row in zip(maps, boxes.tolist(), values.tolist(), strict=True):
        for (low, high), value in zip(corners, row, strict=True):
            if value >= 0:
                own[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return maps


def covered(
    size: tuple[int, ...],
    boxes: Int[np.ndarray, "b k 2 n"],
    counts: Int[np.ndarray, " b"],
    device: torch.device,
) -> Bool[Tensor, "b 1 *s"]:
    """Return which voxels lie in one of the first ``counts`` boxes of their sample."""
    used = np.where(np.arange(boxes.shape[1]) < counts[:, None], 1, -1)
    return fill_boxes(size, boxes, used, device)[:, None] > 0
