"""Targets: the values that a benchmark's figures should reach."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """The value that a figure should reach; ``met`` says whether it does."""

    figure: str
    value: float
    expected: str
    met: bool


def reached(figures: dict[str, Any]) -> list[Target]:
    """Compare figures with their targets."""
    targets = []
    for kind in ("slices", "volumes"):
        ratio = figures[kind]["feed_over_dataloader"]
        targets.append(Target(f"feed / better DataLoader, {kind}", ratio, "at least 1", ratio >= 1))
    share = figures["drawing"]["share_of_loading"]
    targets.append(Target("drawing an IoU pair / loading its image", share, "under 0.01", share < 0.01))
    for name in ("ingest", "training"):
        growth = figures["training"][f"{name}_growth"]
        targets.append(Target(f"growth of {name}'s peak memory, N to 4 N", growth, "under 0.1", growth < 0.1))
    return targets
