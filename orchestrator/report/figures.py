"""Figures of a report: matplotlib's, as SVG that a page holds in itself and shows in its own colours."""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from orchestrator.results.charts import (
    MARKERS,
    PALETTE,
    Curve,
    Looks,
    ScoredRow,
    looks_of,
    name_rows,
    plain_axis,
    plot_bands,
    plot_points,
    plot_scores,
)
from orchestrator.results.statistics import Summary
from orchestrator.results.tasks import TaskRanks

WIDTH, HEIGHT, ROW, LEGEND = 5.2, 2.9, 0.34, 0.17  # inches


def scores(rows: Sequence[ScoredRow], metric: str, looks: Looks) -> str:
    """Draw each row's runs as dots, their mean as a bar, and the mean's interval as a line."""
    figure, axis = _axes(metric, "", num_rows=len(rows))
    plot_scores(axis, rows, looks)
    return _svg(figure)


def by_patient(rows: Mapping[str, Sequence[float]], metric: str, looks: Looks) -> str:
    """Draw each row's patients as dots, and the middle one of them as a bar."""
    figure, axis = _axes(metric, "", num_rows=len(rows))
    for number, (name, values) in enumerate(rows.items()):
        colour, apart = looks[name].colour, np.random.default_rng(0).uniform(-0.22, 0.22, len(values))
        axis.scatter(values, number + apart, color=colour, s=12, alpha=0.6, linewidth=0)
        axis.vlines(float(np.median(values)), number - 0.32, number + 0.32, color=colour, linewidth=2.4)
    return _named_rows(figure, axis, [*rows])


def by_label(rows: Mapping[str, Mapping[str, float]], metric: str, looks: Looks) -> str:
    """Draw each label's mean under each row."""
    labels = list(dict.fromkeys(label for own in rows.values() for label in own))
    figure, axis = _axes(metric, "", num_rows=len(labels))
    for name, own in rows.items():
        places, look = [labels.index(label) for label in own], looks[name]
        axis.scatter([*own.values()], places, color=look.colour, marker=look.marker, s=24, label=name, alpha=0.85)
    _legend(figure, len(rows))
    return _named_rows(figure, axis, labels)


def curves(rows: Mapping[str, Sequence[Curve]], x_label: str, metric: str, looks: Looks) -> str:
    """Draw each row's mean over its runs, with a band of one sample deviation."""
    figure, axis = _axes(x_label, metric)
    plot_bands(axis, rows, looks)
    _legend(figure, len(rows))
    return _svg(figure)


def over(lines: Mapping[str, Mapping[float, Summary]], field: str, metric: str) -> str:
    """Draw each line's means over a field's values, with bars of one sample deviation, and each run faintly."""
    figure, axis = _axes(field, metric)
    plot_points(axis, lines, looks_of([*lines]))
    _legend(figure, len(lines))
    return _svg(figure)


def against_cost(rows: Mapping[str, tuple[float, float]], x_label: str, metric: str, looks: Looks) -> str:
    """Draw each row's mean score over what its runs cost."""
    figure, axis = _axes(x_label, metric)
    for name, (cost, mean) in rows.items():
        axis.scatter([cost], [mean], color=looks[name].colour, marker=looks[name].marker, s=40, label=name)
    axis.set_xlim(left=0)
    _legend(figure, len(rows))
    return _svg(figure)


def parallel(
    points: Sequence[Mapping[str, float]], values: Sequence[float], metric: str, logs: set[str], sign: int
) -> str:
    """Draw each trial as a line over the fields that were searched to its value, the darker the better.

    ``points`` have all fields in the same order, ``logs`` are those whose axis is logarithmic, and ``sign`` is -1
    where lower values are better.
    """
    fields = [*points[0], metric]
    table = np.array([[*point.values(), value] for point, value in zip(points, values, strict=True)], dtype=float)
    scaled = np.empty_like(table)
    for place, field in enumerate(fields):
        own = np.log10(table[:, place]) if field in logs else table[:, place]
        low, high = own.min(), own.max()
        scaled[:, place] = (own - low) / (high - low) if high > low else 0.5
    figure, axis = _axes("", "")
    axis.set_axis_off()
    for row in scaled[np.argsort(sign * scaled[:, -1])]:
        darkness = row[-1] if sign > 0 else 1 - row[-1]
        axis.plot(range(len(fields)), row, color=PALETTE[0], alpha=0.15 + 0.75 * darkness, linewidth=1.2)
    for place, field in enumerate(fields):
        axis.vlines(place, 0, 1, color="#808080", linewidth=0.8)
        axis.text(place, -0.07, f"{table[:, place].min():.3g}", ha="center", va="top", fontsize=8)
        axis.text(place, 1.03, f"{table[:, place].max():.3g}", ha="center", va="bottom", fontsize=8)
        axis.text(place, 1.13, field, ha="center", va="bottom", fontsize=8)
    return _svg(figure)


def pareto(points: Sequence[tuple[tuple[float, float], bool]], x_label: str, metric: str) -> str:
    """Draw trials as dots, and a line through those on the front; a point is (x, y) and whether it leads."""
    figure, axis = _axes(x_label, metric)
    others = [point for point, leads in points if not leads]
    leading = sorted(point for point, leads in points if leads)
    if others:
        axis.scatter(*zip(*others, strict=True), color=PALETTE[-1], marker=MARKERS[0], s=24, label="other trials")
    x, y = zip(*leading, strict=True)
    axis.plot(x, y, color=PALETTE[0], marker=MARKERS[1], markersize=6, linewidth=1.2, label="Pareto front")
    _legend(figure, 2)
    return _svg(figure)


def lineage(
    members: Mapping[int, Mapping[int, float]], copies: Sequence[tuple[int, int, int]], y_label: str, log: bool
) -> str:
    """Draw each member's values over the steps, broken where it copied another member.

    A copy is the step, the member and its source, from whose value a dashed line leads to the member's next.
    """
    figure, axis = _axes("step", y_label)
    names = {number: f"member {number}" for number in members}
    looks = looks_of([*names.values()])
    for number, values in members.items():
        look, steps = looks[names[number]], [*values]
        axis.plot([], [], color=look.colour, marker=look.marker, label=names[number])
        axis.scatter(steps, [*values.values()], color=look.colour, marker=look.marker, s=18)
        for start, end in pairwise(steps):
            source = next((source for step, own, source in copies if (step, own) == (start, number)), number)
            style = "-" if source == number else "--"
            before = members[source].get(start, values[start])
            axis.plot([start, end], [before, values[end]], color=look.colour, linewidth=1.4, linestyle=style)
    if log:
        axis.set_yscale("log")
    _legend(figure, len(members))
    return _svg(figure)


def critical_differences(found: TaskRanks) -> str:
    """Draw mean ranks on a line, with a bar over rows that cannot be told apart."""
    from scikit_posthocs import critical_difference_diagram

    figure = Figure(figsize=(WIDTH, 1.3 + 0.17 * len(found.ranks)), layout="constrained")
    critical_difference_diagram(dict(found.ranks), found.p, ax=figure.subplots(), label_props={"fontsize": 8})
    return _svg(figure)


def bars(values: Mapping[str, float], label: str) -> str:
    """Draw a bar for each name, the longest first."""
    figure, axis = _axes(label, "", num_rows=len(values))
    ordered = dict(sorted(values.items(), key=lambda item: -item[1]))
    axis.barh(range(len(ordered)), [*ordered.values()], color=PALETTE[0], height=0.6)
    return _named_rows(figure, axis, [*ordered])


def _axes(x_label: str, y_label: str, num_rows: int | None = None) -> tuple[Figure, Axes]:
    height = HEIGHT if num_rows is None else 0.9 + ROW * num_rows
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, plain_axis(figure, x_label, y_label)


def _named_rows(figure: Figure, axis: Axes, names: Sequence[str]) -> str:
    name_rows(axis, names)
    return _svg(figure)


def _legend(figure: Figure, number: int) -> None:
    if number > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + LEGEND * ((number + 1) // 2))


def _svg(figure: Figure) -> str:
    """Return a figure as SVG without a size of its own or a background, whose black is the page's colour of text."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "raydiology"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
