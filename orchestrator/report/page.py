"""Page: a report as one HTML file that holds its figures and asks no network for anything."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from data.shards.writer import write_atomically
from orchestrator.report.content import ReportContent, report_of
from orchestrator.report.over_tables import OverTables, over_tables
from orchestrator.report.template import PAGE
from orchestrator.results.compare import ComparisonResult

REPORT = "report.html"


def page(reports: Sequence[ReportContent], over: OverTables | None = None) -> str:
    """Return reports as HTML, what is said over several tables first; all text in it is escaped."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    title = reports[0].title if len(reports) == 1 else f"{len(reports)} tables"
    return template.render(title=title, reports=reports, over=over)


def write(results: Sequence[ComparisonResult], file: Path) -> Path:
    """Write the report on one comparison, or on one of each of several tables, and return its file."""
    over = over_tables(results) if len(results) > 1 else None
    write_atomically(file, page([report_of(one) for one in results], over))
    return file
