"""Charts: draw the numbers of runs as PNG bytes: curves over steps, and scores with their intervals."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from orchestrator.results.statistics import Summary

Curve = tuple[Sequence[float], Sequence[float]]

MOST_POINTS = 200
ROW_INCHES = 0.42
FAINT = 0.25
APART = 0.12  # of the distance of two places
MARKS = 8  # markers along a curve
# Okabe and Ito's colours, which colour-blind readers tell apart, in an order whose neighbours differ in lightness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Look:
    """A row's colour and marker, the same in all figures of a page."""

    colour: str
    marker: str


Looks = Mapping[str, Look]


def looks_of(names: Sequence[str]) -> Looks:
    """Give each name a look; where a colour comes again, its marker is another one."""
    return {
        name: Look(PALETTE[n % len(PALETTE)], MARKERS[(n + n // len(PALETTE)) % len(MARKERS)])
        for n, name in enumerate(names)
    }


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
    """Draw curves with their bands (see ``plot_bands``), and each run faintly."""
    figure, axis = _framed(title, x_label, y_label)
    looks = looks_of([*curves])
    plot_bands(axis, curves, looks)
    for name, runs in curves.items():
        for run in runs if len(runs) > 1 else ():
            axis.plot(*_thinned(*run), color=looks[name].colour, alpha=FAINT, linewidth=0.8)
    if curves:
        axis.legend(frameon=False, fontsize=8)
    return figure


def points_figure(lines: Mapping[str, Mapping[float, Summary]], title: str, x_label: str, y_label: str) -> Figure:
    """Draw lines of means over the places that were tried (see ``plot_points``)."""
    figure, axis = _framed(title, x_label, y_label)
    plot_points(axis, lines, looks_of([*lines]))
    if lines:
        axis.legend(frameon=False, fontsize=8)
    return figure


def scores_figure(rows: Sequence[ScoredRow], title: str, metric: str) -> Figure:
    """Draw rows of scores (see ``plot_scores``)."""
    figure, axis = _framed(title, metric, "", height=1.2 + ROW_INCHES * len(rows))
    plot_scores(axis, rows, looks_of([row.name for row in rows]))
    return figure


def plot_bands(axis: Axes, curves: Mapping[str, Sequence[Curve]], looks: Looks) -> None:
    """Draw each name's mean over its runs with a band of one sample deviation.

    Mean and band are drawn only where all runs of a name have a value, so that a run that ended early does not bend
    them. Long curves are smoothed to 200 points.
    """
    for name, runs in curves.items():
        mean, look = mean_curve(runs), looks[name]
        axis.plot(
            mean.x, mean.y, label=name, color=look.colour, linewidth=1.6, marker=look.marker, markersize=4,
            markevery=max(1, len(mean.x) // MARKS),
        )  # fmt: skip
        if len(runs) > 1:
            low, high = mean.y - mean.deviation, mean.y + mean.deviation
            axis.fill_between(mean.x, low, high, color=look.colour, alpha=0.15, linewidth=0)


def plot_points(axis: Axes, lines: Mapping[str, Mapping[float, Summary]], looks: Looks) -> None:
    """Draw each line's means over its places with bars of one sample deviation, and each value faintly.

    Bars of different lines at one place stand a little apart.
    """
    places = sorted({place for line in lines.values() for place in line})
    apart = APART * min(np.diff(places), default=0.0)
    for number, (name, line) in enumerate(lines.items()):
        look, shift = looks[name], apart * (number - (len(lines) - 1) / 2) / max(1, len(lines) - 1)
        x = [place + shift for place in line]
        bars = [summary.deviation or 0.0 for summary in line.values()]
        means = np.array([summary.mean for summary in line.values()], dtype=float)
        axis.errorbar(x, means, bars, label=name, color=look.colour, marker=look.marker, linewidth=1.6, capsize=3)
        for place, summary in zip(x, line.values(), strict=True):
            axis.scatter([place] * summary.num_values, summary.values, color=look.colour, s=14, alpha=FAINT)
    axis.set_xticks(places)


def plot_scores(axis: Axes, rows: Sequence[ScoredRow], looks: Looks) -> None:
    """Draw one line per row, from top to bottom: runs as dots, their mean as a bar, its interval as a line.

    An interval that is much wider than the scores, as with two runs, extends beyond the sides of the picture.
    """
    for number, row in enumerate(rows):
        colour = looks[row.name].colour
        if row.interval is not None:
            axis.hlines(number, *row.interval, color=colour, linewidth=1.6, alpha=0.6)
        axis.vlines(row.mean, number - 0.28, number + 0.28, color=colour, linewidth=2.4)
        axis.scatter(row.values, [number] * len(row.values), color=colour, s=20, zorder=3)
    values = [value for row in rows for value in row.values]
    span = (max(values) - min(values)) or abs(values[0]) or 1.0
    left, right = axis.get_xlim()
    axis.set_xlim(max(left, min(values) - span), min(right, max(values) + span))
    name_rows(axis, [row.name for row in rows])


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Write the names of rows at the side of an axis, the first at the top."""
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))


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


def plain_axis(figure: Figure, x_label: str, y_label: str) -> Axes:
    """Add an axis with a faint grid and no frame at the top and the right."""
    axis = figure.subplots()
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _framed(title: str, x_label: str, y_label: str, height: float = 4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, height), layout="constrained", facecolor="white")
    axis = plain_axis(figure, x_label, y_label)
    axis.set_title(title, fontsize=10, wrap=True)
    return figure, axis


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
