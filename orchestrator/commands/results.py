"""Commands on results: compare, export, ui."""

import argparse
from pathlib import Path

from orchestrator.commands.console import Commands, add_command, loading, out, show_page
from orchestrator.terminal.progress import phase


def add(commands: Commands) -> None:
    """Add these commands."""
    _add_compare(commands)
    _add_export(commands)
    ui = add_command(commands, "ui", "open MLflow's page on the runs of a home", _ui)
    ui.add_argument("--home", default="runs", help="folder of the runs (default: runs)")
    ui.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")


def _add_compare(commands: Commands) -> None:
    parser = add_command(commands, "compare", "put any runs side by side: table, CSV, figures", _compare)
    parser.add_argument(
        "folders", nargs="*", default=[], metavar="FOLDER", help="folder of a run, a table, a sweep or an experiment"
    )
    parser.add_argument("--home", default="runs", help="folder of the runs (default: runs)")
    parser.add_argument("--experiment", help="name of the experiment, if no folder is given")
    parser.add_argument("--uri", help="MLflow server to read the experiment from, if folders are out of reach")
    parser.add_argument("--name", action="append", default=[], help="pattern of names, rows or folders of runs")
    parser.add_argument("--kind", choices=("finetune", "pretrain", "trial"), help="(default: what is judged)")
    parser.add_argument("--metric", help="(default: score; for pretrainings, collapse)")
    parser.add_argument("--also", nargs="+", default=[], metavar="METRIC", help="show these metrics too")
    parser.add_argument("--by", nargs="+", default=[], metavar="FIELD", help="group the runs by row, or by fields")
    parser.add_argument("--reference", metavar="ROW", help="test the others against this row (default: scratch)")
    parser.add_argument("--curve", nargs="+", default=[], metavar="METRIC", help="draw the pretrainings' metrics")
    parser.add_argument("--out", help="folder to write (default: comparison-KEY beside the runs)")


def _compare(arguments: argparse.Namespace) -> None:
    with loading():
        from orchestrator.results import compare, selection
        from orchestrator.results.text import as_ranked

    folders, home = [Path(folder) for folder in arguments.folders], Path(arguments.home)
    with phase("reading the runs"):
        if arguments.uri:
            from orchestrator.results.server_cards import on_server

            choice = on_server(arguments.uri, arguments.experiment, home)
        else:
            choice = selection.in_folders(folders, home, arguments.experiment)
    request = compare.Request(
        kind=arguments.kind,
        names=tuple(arguments.name),
        metric=arguments.metric,
        also=tuple(arguments.also),
        by=tuple(arguments.by),
        reference=arguments.reference,
        curves=tuple(arguments.curve),
    )
    compared = compare.compare(choice, request)
    means = [line.summary.mean for line in compared.lines]
    out.print(as_ranked(*compared.text, compared.asked.metric, means))
    with phase("drawing the figures"):
        files = compare.write(compared, Path(arguments.out) if arguments.out else compared.folder)
    for file in files:
        out.print(str(file), soft_wrap=True, highlight=False)
    out.print(f"MLflow: {compare.log(compared, files)}", soft_wrap=True, highlight=False, markup=False)
    if page := compare.page(compared):
        show_page(page.address, page.home)


def _add_export(commands: Commands) -> None:
    parser = add_command(commands, "export", "write weights that MONAI's own classes load strictly", _export)
    parser.add_argument("run", help="folder of a pretraining or a fine-tuning below the home")
    parser.add_argument("--out", required=True, help="folder to write weights and a loading script to")


def _export(arguments: argparse.Namespace) -> None:
    from orchestrator.runs.export import export

    for path in export(Path(arguments.run), Path(arguments.out)):
        out.print(str(path), soft_wrap=True, highlight=False)


def _ui(arguments: argparse.Namespace) -> int:
    from orchestrator.results.ui import serve

    return serve(Path(arguments.home), arguments.port)
