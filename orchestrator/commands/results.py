"""Commands on results: compare, export, ui."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.commands.console import loading, out, show_page
from orchestrator.commands.usage import Commands
from orchestrator.terminal.progress import phase

app = Commands()
Home = Annotated[Path, typer.Option(help="folder of the runs")]


@app.command()
def compare(
    *,
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="folder of a run, a table, a sweep or an experiment")
    ] = None,
    home: Home = Path("runs"),
    experiment: Annotated[str | None, typer.Option(help="name of the experiment, if no folder is given")] = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow server to read the experiment from, if folders are out of reach")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="pattern of names, rows or folders of runs")
    ] = None,
    kind: Annotated[
        Literal["finetune", "pretrain", "trial"] | None, typer.Option(help="(default: what is judged)")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="(default: score; for pretrainings, collapse)")] = None,
    also: Annotated[list[str] | None, typer.Option(metavar="METRIC...", help="show these metrics too")] = None,
    by: Annotated[
        list[str] | None, typer.Option(metavar="FIELD...", help="group the runs by row, or by fields")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="ROW", help="test the others against this row (default: scratch)")
    ] = None,
    curve: Annotated[
        list[str] | None, typer.Option(metavar="METRIC...", help="draw the pretrainings' metrics")
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="folder to write (default: comparison-KEY beside the runs)")
    ] = None,
) -> None:
    """Put any runs side by side: table, CSV, figures."""
    with loading():
        from orchestrator.results import compare as comparison
        from orchestrator.results import selection
        from orchestrator.results.text import as_ranked

    with phase("reading the runs"):
        if uri:
            from orchestrator.results.server_cards import on_server

            choice = on_server(uri, experiment, home)
        else:
            choice = selection.in_folders(folders or [], home, experiment)
    request = comparison.Request(
        kind=kind,
        names=tuple(name or ()),
        metric=metric,
        also=tuple(also or ()),
        by=tuple(by or ()),
        reference=reference,
        curves=tuple(curve or ()),
    )
    compared = comparison.compare(choice, request)
    means = [line.summary.mean for line in compared.lines]
    out.print(as_ranked(*compared.text, compared.asked.metric, means))
    with phase("drawing the figures"):
        files = comparison.write(compared, target or compared.folder)
    for file in files:
        out.print(str(file), soft_wrap=True, highlight=False)
    out.print(f"MLflow: {comparison.log(compared, files)}", soft_wrap=True, highlight=False, markup=False)
    if page := comparison.page(compared):
        show_page(page.address, page.home)


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
