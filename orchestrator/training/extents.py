"""Extents: check that a method can train on samples of all selected sizes, and say how to leave some out."""

from collections.abc import Iterable

import numpy as np

from data.shards.index import Selection
from methods.base import Method

Size = tuple[int, ...]


def check_extents(method: Method, selection: Selection, field: str) -> None:
    """Raise ValueError if a method cannot train on some samples, and say how many.

    ``field`` is the config's part that selects the samples, such as ``data``. If a minimum size separates the refused
    samples from all others, the message names the filter that leaves them out.
    """
    sizes, counts = np.unique(selection.extents, axis=0, return_counts=True)
    reasons = {tuple(size): _reason(method, tuple(size)) for size in sizes.tolist()}
    refused = [size for size, reason in reasons.items() if reason]
    if not refused:
        return
    count = sum(number for size, number in zip(reasons, counts.tolist(), strict=True) if reasons[size])
    accepted = [size for size in reasons if size not in refused]
    text = f"{field}: {count:,} of {selection.num_samples:,} samples cannot be used: {reasons[refused[0]]}"
    if least := _separating(method, accepted, refused):
        them = "this sample" if count == 1 else f"these {count:,} samples"
        text += f"; or leave {them} out by {field}.keep.min_size='{list(least)}'"
    raise ValueError(text)


def _reason(method: Method, size: Size) -> str:
    """Return why a method cannot train on samples of a size; empty if it can."""
    try:
        method.check_extent(size)
    except ValueError as error:
        return str(error)
    return ""


def _separating(method: Method, accepted: list[Size], refused: list[Size]) -> Size | None:
    """Return a minimum size that all accepted samples reach and no refused sample does; None if there is none."""
    if not accepted:
        return None
    for least in (_least(method, accepted), tuple(np.min(accepted, axis=0).tolist())):
        if _all_have(least, accepted) and not any(_all_have(least, [size]) for size in refused):
            return least
    return None


def _least(method: Method, accepted: list[Size]) -> Size:
    """Find by bisection the least length along each axis that a method takes when the other axes are long."""
    longest = np.max(accepted, axis=0).tolist()
    least = []
    for axis in range(len(longest)):
        low, high = 1, longest[axis]
        while low < high:
            middle = (low + high) // 2
            if _reason(method, (*longest[:axis], middle, *longest[axis + 1 :])):
                low = middle + 1
            else:
                high = middle
        least.append(high)
    return tuple(least)


def _all_have(least: Size, sizes: Iterable[Size]) -> bool:
    return all(length >= needed for size in sizes for length, needed in zip(size, least, strict=True))
