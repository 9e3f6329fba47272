"""Text: a heading and rows of cells, for a terminal, in Markdown and in CSV; numbers as cells."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from orchestrator.direction import best, best_first, direction_of, words
from orchestrator.results.statistics import Comparison

NOTHING, MARK = "-", "best"


def as_ranked(
    title: str,
    heading: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    metric: str,
    means: Sequence[float | None],
) -> Table:
    """Return cells for rich's console, rows from the best mean of the metric to the worst, the best marked."""
    direction = direction_of(metric)
    rows, winner = [list(row) for row in rows], best(means, direction)
    if winner is not None and direction is not None:
        rows[winner][list(heading).index(metric)] += f" {MARK}"
        extreme = "highest" if direction == "max" else "lowest"
        notes = [f"{metric}: {words(direction)}; {MARK}: the {extreme} mean, which need not be significant", *notes]
    return as_terminal(title, heading, [rows[place] for place in best_first(means, direction)], notes)


def as_markdown(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return cells in Markdown, with a title above and notes below."""
    body = [f"# {title}", "", _joined(heading), _joined(["---"] * len(heading))]
    body += [_joined([cell.replace("|", "\\|") for cell in row]) for row in rows]
    return "\n".join([*body, "", *(f"- {note}" for note in notes), ""])


def as_csv(heading: list[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return cells as CSV, numbers with every digit; a cell without a value is empty."""
    return pd.DataFrame(list(rows), columns=heading, dtype=object).to_csv(index=False, lineterminator="\n")


def as_terminal(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> Table:
    """Return cells for rich's console; the columns named ``row`` and ``runs`` hold words."""
    table = Table(title=Text(title), caption=Text("\n".join(notes)), caption_justify="left")
    for name in heading:
        table.add_column(Text(name), justify="left" if name in ("row", "runs") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def spread(mean: float | None, deviation: float | None, decimals: int) -> str:
    """Write a mean and its deviation, if they exist."""
    if mean is None:
        return NOTHING
    return f"{mean:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")


def significance(comparison: Comparison | None) -> str:
    """Write a test's p."""
    if comparison is None or comparison.p is None:
        return NOTHING
    return "< 0.001" if comparison.p < 0.001 else f"{comparison.p:.3f}"


def _joined(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"
