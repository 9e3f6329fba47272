"""Boxes as a source gives them, before the image is read whose findings they hold."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FoundBox:
    """A box and its class.

    low, high   its faces along the axes of the image's array, (H, W) or (D, H, W), in pixels from the border before
                the first one; they need not lie on borders between pixels
    number      of its class; ``name`` is what the class is called
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    number: int
    name: str
