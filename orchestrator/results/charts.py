"""Charts: draw the numbers of runs as PNG bytes: curves over steps, and scores with their intervals."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from orchestrator.results.statistics import Summary

Curve = tuple[Sequence[float], Sequence[float]]

MOST_POINTS = 200
ROW_INCHES = 0.42
FAINT = 0.25
APART = 0.12  # of the distance of two places


@dataclass(frozen=True)
class ScoredRow:
    """Scores of repeated runs, and the interval of their mean if it exists."""

    name: str
    values: Sequence[float]
    mean: float
    interval: tuple[float, float] | None


def draw_curves(curves: Mapping[str, Curve], title: str, x_label: str, y_label: str) -> bytes:
    """Draw named curves (x, y) in one diagram, such as the collapse coefficient of several runs."""
    return draw_bands({name: [curve] for name, curve in curves.items()}, title, x_label, y_label)


def draw_bands(curves: Mapping[str, Sequence[Curve]], title: str, x_label: str, y_label: str) -> bytes:
    """Draw repeated runs' curves (x, y) as a PNG (see ``bands_figure``)."""
    return _png(bands_figure(curves, title, x_label, y_label))


def draw_scores(rows: Sequence[ScoredRow], title: str, metric: str) -> bytes:
    """Draw rows of scores as a PNG (see ``scores_figure``)."""
    return _png(scores_figure(rows, title, metric))


def draw_points(lines: Mapping[str, Mapping[float, Summary]], title: str, x_label: str, y_label: str) -> bytes:
    """Draw lines of repeated values over the places that were tried as a PNG (see ``points_figure``)."""
    return _png(points_figure(lines, title, x_label, y_label))


def bands_figure(curves: Mapping[str, Sequence[Curve]], title: str, x_label: str, y_label: str) -> Figure:
    """Draw each name's mean over its runs with a band of one sample deviation, and each run faintly.

    Mean and band are drawn only where all runs of a name have a value, so that a run that ended early does not bend
    them. Long curves are smoothed to 200 points.
    """
    figure = Figure(figsize=(7, 4), layout="constrained", facecolor="white")
    axis = _plain_axis(figure, title, x_label, y_label)
    for number, (name, runs) in enumerate(curves.items()):
        colour = colormaps["tab10"](number % 10)
        mean = mean_curve(runs)
        # A curve of one point would not be seen as a line.
        marker = "o" if len(mean.x) == 1 else None
        axis.plot(mean.x, mean.y, label=name, linewidth=1.6, color=colour, marker=marker)
        if len(runs) > 1:
            axis.fill_between(
                mean.x, mean.y - mean.deviation, mean.y + mean.deviation, color=colour, alpha=0.15, lw=0
            )
            for run in runs:
                axis.plot(*_thinned(*run), color=colour, alpha=FAINT, linewidth=0.8)
    if curves:
        axis.legend(frameon=False, fontsize=8)
    return figure


def points_figure(lines: Mapping[str, Mapping[float, Summary]], title: str, x_label: str, y_label: str) -> Figure:
    """Draw each line's means over its places with bars of one sample deviation, and each value faintly.

    Bars of different lines at one place stand a little apart.
    """
    figure = Figure(figsize=(7, 4), layout="constrained", facecolor="white")
    axis = _plain_axis(figure, title, x_label, y_label)
    places = sorted({place for line in lines.values() for place in line})
    apart = APART * min(np.diff(places), default=0.0)
    for number, (name, line) in enumerate(lines.items()):
        colour = colormaps["tab10"](number % 10)
        shift = apart * (number - (len(lines) - 1) / 2) / max(1, len(lines) - 1)
        x = [place + shift for place in line]
        bars = [summary.deviation or 0.0 for summary in line.values()]
        means = np.array([summary.mean for summary in line.values()], dtype=float)
        axis.errorbar(x, means, bars, label=name, color=colour, marker="o", linewidth=1.6, capsize=3)
        for place, summary in zip(x, line.values(), strict=True):
            axis.scatter([place] * summary.num_values, summary.values, color=colour, s=14, alpha=FAINT)
    axis.set_xticks(places)
    if lines:
        axis.legend(frameon=False, fontsize=8)
    return figure


def scores_figure(rows: Sequence[ScoredRow], title: str, metric: str) -> Figure:
    """Draw one line per row, from top to bottom: runs as dots, their mean as a bar, its interval as a line.

    An interval that is much wider than the scores, as with two runs, extends beyond the sides of the picture.
    """
    figure = Figure(figsize=(7, 1.2 + ROW_INCHES * len(rows)), layout="constrained", facecolor="white")
    axis = _plain_axis(figure, title, metric, "")
    for number, row in enumerate(rows):
        colour = colormaps["tab10"](number % 10)
        if row.interval is not None:
            axis.hlines(number, *row.interval, color=colour, linewidth=1.6, alpha=0.6)
        axis.vlines(row.mean, number - 0.25, number + 0.25, color=colour, linewidth=2.4)
        axis.scatter(row.values, [number] * len(row.values), color=colour, s=22, alpha=0.8, zorder=3)
    values = [value for row in rows for value in row.values]
    span = (max(values) - min(values)) or abs(values[0]) or 1.0
    left, right = axis.get_xlim()
    axis.set_xlim(max(left, min(values) - span), min(right, max(values) + span))
    axis.set(yticks=range(len(rows)), yticklabels=[row.name for row in rows], ylim=(len(rows) - 0.5, -0.5))
    return figure


@dataclass(frozen=True)
class MeanCurve:
    """The mean of curves at the places that they share, and their sample deviation (0 for a single curve)."""

    x: np.ndarray
    y: np.ndarray
    deviation: np.ndarray


def mean_curve(curves: Sequence[Curve]) -> MeanCurve:
    """Average repeated curves at the places where all of them have a value; smooth long ones."""
    values = [dict(zip(x, y, strict=True)) for x, y in curves]
    shared = sorted(set.intersection(*(set(by_place) for by_place in values)))
    table = np.array([[by_place[place] for place in shared] for by_place in values]).reshape(len(values), len(shared))
    deviation = table.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(shared))
    return MeanCurve(*_thinned(shared, table.mean(axis=0), deviation))


def _thinned(*columns: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """Split the columns into at most 200 pieces of equal length and return the mean of each."""
    pieces = np.array_split(np.arange(len(columns[0])), min(MOST_POINTS, max(1, len(columns[0]))))
    arrays = [np.asarray(column, dtype=float) for column in columns]
    return [np.array([array[piece].mean() for piece in pieces if len(piece)]) for array in arrays]


def _plain_axis(figure: Figure, title: str, x_label: str, y_label: str) -> Axes:
    axis = figure.subplots()
    axis.set_title(title, fontsize=10, wrap=True)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
