"""Text: a heading and rows of cells, for a terminal, in Markdown and in CSV; numbers as cells."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from orchestrator.direction import best_first, direction_of, words
from orchestrator.results.statistics import Comparison

NOTHING, MARK = "-", "best"


def as_ranked(
    title: str,
    heading: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    metric: str,
    means: Sequence[float | None],
    is_best: bool,
) -> Table:
    """Return cells for rich's console, rows from the best mean of the metric to the worst.

    The first is marked, and bold, if it ``is_best``: better than each other row beyond chance. The single runs are
    left to the files: a terminal has no room for them.
    """
    direction = direction_of(metric)
    kept = [place for place, name in enumerate(heading) if name != "runs"]
    heading, order = [heading[place] for place in kept], best_first(means, direction)
    rows = [[row[place] for place in kept] for row in rows]
    if direction is not None:
        notes = [f"{metric}: {words(direction)}", *notes]
    if is_best:
        rows[order[0]][heading.index(metric)] += f" {MARK}"
    return as_terminal(title, heading, [rows[place] for place in order], notes, bold=0 if is_best else None)


def as_markdown(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return cells in Markdown, with a title above and notes below."""
    body = [f"# {title}", "", _joined(heading), _joined(["---"] * len(heading))]
    body += [_joined([cell.replace("|", "\\|") for cell in row]) for row in rows]
    return "\n".join([*body, "", *(f"- {note}" for note in notes), ""])


def as_csv(heading: list[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return cells as CSV, numbers with every digit; a cell without a value is empty."""
    return pd.DataFrame(list(rows), columns=heading, dtype=object).to_csv(index=False, lineterminator="\n")


def as_terminal(
    title: str, heading: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], bold: int | None = None
) -> Table:
    """Return cells for rich's console, perhaps one row bold; the columns named ``row`` and ``runs`` hold words."""
    table = Table(title=Text(title), caption=Text("\n".join(notes)), caption_justify="left")
    for name in heading:
        table.add_column(Text(name), justify="left" if name in ("row", "runs") else "right", overflow="fold")
    for place, row in enumerate(rows):
        table.add_row(*(Text(cell) for cell in row), style="bold" if place == bold else None)
    return table


def spread(mean: float | None, deviation: float | None, decimals: int) -> str:
    """Write a mean and its deviation, if they exist."""
    if mean is None:
        return NOTHING
    return f"{mean:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")


def significance(comparison: Comparison | None) -> str:
    """Write a test's p, corrected for the number of rows."""
    if comparison is None or comparison.corrected is None:
        return NOTHING
    return "< 0.001" if comparison.corrected < 0.001 else f"{comparison.corrected:.3f}"


def gain(comparison: Comparison | None, decimals: int) -> str:
    """Write a difference and its interval."""
    if comparison is None or comparison.difference is None or comparison.interval is None:
        return NOTHING
    low, high = (f"{end:+.{decimals}f}" for end in comparison.interval)
    return f"{comparison.difference:+.{decimals}f} ({low} to {high})"


def tests_explained(comparisons: Sequence[Comparison | None], decimals: int) -> list[str]:
    """Say how p's and intervals were computed, and what so few runs and cases can show."""
    tested = [one for one in comparisons if one is not None and one.p is not None]
    if not tested:
        return []
    said, rows = [], f"{len(tested)} row{'s' * (len(tested) > 1)}"
    paired = [one for one in tested if one.num_cases is not None]
    if paired:
        counts = sorted({one.num_cases or 0 for one in paired})
        of_cases = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        said.append(
            f"p: two-sided, over runs and {of_cases} patients, Holm-corrected for {rows}; difference "
            "with its 95 % interval"
        )
    if len(paired) < len(tested):
        which = "p" if not paired else f"p of {len(tested) - len(paired)} rows without scores of patients"
        said.append(
            f"{which}: Welch's t-test over runs, two-sided, Holm-corrected for {rows}: of other patients it says "
            "nothing; difference with its 95 % interval"
        )
    smallest = [one.detectable for one in tested if one.detectable is not None]
    if smallest:
        ends = dict.fromkeys(f"{end:.{decimals}f}" for end in (min(smallest), max(smallest)))
        many = "so many runs and patients" if paired else "so many runs"
        said.append(f"{many} show a difference of {' to '.join(ends)} four times in five, before the correction")
    return said


def answer(names: Sequence[str], alike: Sequence[Sequence[str] | None], score: str = "") -> str:
    """Say which row is better than each other one, or from which rows the best mean cannot be told; "" for none.

    ``score`` is the metric with the best mean, to be said beside the row's name.
    """
    for name, others in zip(names, alike, strict=True):
        if others is not None:
            named = f"{name} ({score})" if score else name
            if not others:
                return f"{named} is better than each other row (p < 0.05, Holm-corrected)"
            return f"no row is best: {named} has the best mean, not distinguishable from {'; '.join(others)}"
    return ""


def _joined(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def shortened(field: str, among: Sequence[str]) -> str:
    """Return the shortest end of a name that tells it from the others: ``lr``, or ``downstream.optimiser.lr``."""
    parts = field.split(".")
    for length in range(1, len(parts)):
        short = ".".join(parts[-length:])
        taken = any(other != field and (other == short or other.endswith(f".{short}")) for other in among)
        if not taken and short != "name":
            return short
    return field
