"""Over tables: what a report of several tables says of the rows that they share."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.direction import direction_of
from orchestrator.report import figures
from orchestrator.report.charts import Chart
from orchestrator.results.compare import ComparisonResult
from orchestrator.results.comparison import DECIMALS
from orchestrator.results.tasks import LEAST_ROWS, LEAST_TASKS, TaskRanks, task_ranks

FEW = (
    f"Rows are compared over tables by their ranks where at least {LEAST_TASKS} tables share at least {LEAST_ROWS} "
    "rows with scores; here there are fewer."
)


@dataclass(frozen=True)
class OverTables:
    """The answer over several tables, with a table of ranks and their diagram where there is enough to rank."""

    answer: str
    heading: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    chart: Chart | None = None


def over_tables(results: Sequence[ComparisonResult]) -> OverTables:
    """Compare the rows that several tables share by their ranks."""
    means = [{line.name: line.summary.mean for line in one.lines if line.summary.mean is not None} for one in results]
    names = [f"{one.choice.title}: {one.asked.metric}" for one in results]
    found = task_ranks(names, means, [direction_of(one.asked.metric) for one in results])
    if found is None:
        return OverTables(FEW)
    rows = [
        (name, f"{rank:.2f}", *(f"{mean:.{DECIMALS}f}" for mean in found.means[name]))
        for name, rank in found.ranks.items()
    ]
    text = (
        f"Mean ranks over {len(names)} tables, the best on the left. A bar joins rows that cannot be told apart: "
        f"their ranks differ by less than the critical difference of {found.critical:.2f} (Nemenyi, 0.05)."
    )
    chart = Chart("Critical differences", figures.critical_differences(found), text)
    notes = (
        f"equal ranks of all rows: p = {found.friedman_p:.3f} (Friedman)",
        "a rank says which row is better in a table, not by how much, nor whether that is beyond chance there",
    )
    return OverTables(_answer(found), ("row", "mean rank", *names), tuple(rows), notes, chart)


def _answer(found: TaskRanks) -> str:
    first = next(iter(found.ranks))
    named, others = f"{first} (mean rank {found.ranks[first]:.2f})", found.alike[first]
    where = f"over {len(found.tasks)} tables"
    if not others:
        return f"{named} ranks better than each other row {where} (Nemenyi, p < 0.05)."
    return f"No row is best {where}: {named} ranks first, not distinguishable from {'; '.join(others)}."
