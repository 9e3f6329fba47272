"""Commands on results: compare, export, ui."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.commands.console import loading, out, show_page
from orchestrator.commands.usage import Commands
from orchestrator.terminal.progress import phase

if TYPE_CHECKING:
    from orchestrator.results.compare import ComparisonResult
    from orchestrator.results.selection import RunChoice

app = Commands()
Home = Annotated[Path, typer.Option(help="folder of the runs")]


def _several(metavar: str, help_: str) -> typer.models.OptionInfo:
    return typer.Option(metavar=metavar, help=help_, default_factory=list, show_default=False)


Folders = Annotated[
    list[Path] | None, typer.Argument(metavar="FOLDER", help="folder of a run, a table, a sweep or an experiment")
]
Kind = Annotated[Literal["finetune", "pretrain", "trial"] | None, typer.Option(help="(default: what is judged)")]
Comparison = Annotated[
    Path | None, typer.Option("--out", help="folder to write (default: comparison-KEY beside the runs)")
]


@app.command()
def compare(
    *,
    folders: Folders = None,
    home: Home = Path("runs"),
    experiment: Annotated[str | None, typer.Option(help="name of the experiment, if no folder is given")] = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow server to read the experiment from, if folders are out of reach")
    ] = None,
    name: Annotated[list[str], _several("PATTERN", "pattern of names, rows or folders of runs")],
    kind: Kind = None,
    metric: Annotated[str | None, typer.Option(help="(default: score; for pretrainings, collapse)")] = None,
    also: Annotated[list[str], _several("METRIC...", "show these metrics too")],
    by: Annotated[list[str], _several("FIELD...", "group the runs by row, or by fields")],
    reference: Annotated[
        str | None, typer.Option(metavar="ROW", help="test the others against this row (default: scratch)")
    ] = None,
    curve: Annotated[list[str], _several("METRIC...", "draw the pretrainings' metrics")],
    target: Comparison = None,
) -> None:
    """Put any runs side by side: table, CSV, figures."""
    with loading():
        from orchestrator.results import compare as comparison

    asked = comparison.Request(kind, tuple(name), metric, tuple(also), tuple(by), reference, tuple(curve))
    with phase("reading the runs"):
        choice = _choice(folders or [], home, experiment, uri)
    _show(comparison.compare(choice, asked), target)


def _choice(folders: list[Path], home: Path, experiment: str | None, uri: str | None) -> "RunChoice":
    """Read the runs that are compared, from folders or from an MLflow server."""
    if uri:
        from orchestrator.results.server_cards import on_server

        return on_server(uri, experiment, home)
    from orchestrator.results.selection import in_folders

    return in_folders(folders, home, experiment)


def _show(compared: "ComparisonResult", folder: Path | None) -> None:
    """Print a comparison, write its files, and log it to MLflow."""
    from orchestrator.results.compare import log, page, write
    from orchestrator.results.text import as_ranked

    means = [line.summary.mean for line in compared.lines]
    out.print(as_ranked(*compared.text, compared.asked.metric, means))
    with phase("drawing the figures"):
        files = write(compared, folder or compared.folder)
    for file in files:
        out.print(str(file), soft_wrap=True, highlight=False)
    out.print(f"MLflow: {log(compared, files)}", soft_wrap=True, highlight=False, markup=False)
    if charts := page(compared):
        show_page(charts.address, charts.home)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="folder of a pretraining or a fine-tuning below the home")],
    target: Annotated[Path, typer.Option("--out", help="folder to write weights and a loading script to")],
) -> None:
    """Write weights that MONAI's own classes load strictly."""
    from orchestrator.runs.export import export

    for path in export(run, target):
        out.print(str(path), soft_wrap=True, highlight=False)


@app.command()
def ui(home: Home = Path("runs"), port: Annotated[int, typer.Option(help="port on 127.0.0.1")] = 5000) -> int:
    """Open MLflow's page on the runs of a home."""
    from orchestrator.results.ui import serve

    return serve(home, port)
