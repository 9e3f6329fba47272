"""Curve: a training's metric as a sweep sees it: fewer than two hundred points, each the mean since the last."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

POINTS = 100


@dataclass
class Curve:
    """Turns the lines of a growing history into points (steps done, value).

    metric        its name in the history
    stage         the stage whose lines count
    every         steps between two points; 1 takes every step that has the metric
    total_steps   the last step is a point too
    sign_of_life  a metric that is in every line in which ``metric`` is due
    """

    metric: str
    stage: str
    every: int
    total_steps: int
    sign_of_life: str
    missing: tuple[str, ...] = ()
    _done: int = 0
    _values: list[float] = field(default_factory=list)

    def points(self, lines: list[dict[str, Any]]) -> list[tuple[int, float]]:
        """Return the points that the lines complete; skip steps that were trained again after a failure.

        If a line lacks the metric although it should have it, ``missing`` names the line's metrics.
        """
        points = []
        for line in lines:
            if line["stage"] != self.stage or line.get("step", -1) < self._done or self.sign_of_life not in line:
                continue
            if self.metric not in line:
                self.missing = tuple(sorted(name for name, value in line.items() if isinstance(value, float)))
                break
            self._done = line["step"] + 1
            self._values.append(line[self.metric])
            if self._done % self.every == 0 or self._done == self.total_steps:
                points.append((self._done, float(np.mean(self._values))))
                self._values = []
        return points


def every(total_steps: int) -> int:
    """Return the steps between two points of a training that reports its metric at every step."""
    return max(1, total_steps // POINTS)


def end(values: list[float]) -> float:
    """Return the last point of such a training's whole curve, by which a sweep judges it."""
    apart = every(len(values))
    return float(np.mean(values[(len(values) - 1) // apart * apart :]))
