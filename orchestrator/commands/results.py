"""Commands on results: compare, report, export, embed, ui."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option
from typer.models import OptionInfo

from orchestrator.commands.console import loading, out, show_page
from orchestrator.commands.usage import Commands
from orchestrator.terminal.progress import phase

app = Commands()
Home = Annotated[Path, Option(help="folder of the runs")]


def _several(metavar: str, help_: str) -> OptionInfo:
    return Option(metavar=metavar, help=help_, default_factory=list, show_default=False)


_RUNS = "folder of a run, a table, a sweep or an experiment"
Folders = Annotated[list[Path], Argument(metavar="FOLDER", help=_RUNS, default_factory=list, show_default=False)]
Kind = Annotated[Literal["finetune", "pretrain", "trial"] | None, Option(help="(default: what is judged)")]
InExperiment = Annotated[str | None, Option(help="name of the experiment, if no folder is given")]
Names = Annotated[list[str], _several("PATTERN", "pattern of names, rows or folders of runs")]
_JUDGED_BY = "(default: that of the table or sweep; else score, or collapse of pretrainings)"
Metric = Annotated[str | None, Option(help=_JUDGED_BY)]
Further = Annotated[list[str], _several("METRIC...", "show these metrics too")]
Fields = Annotated[list[str], _several("FIELD...", "group the runs by row, or by fields")]
_TESTED = "row to test the others against (default: the table's reference, else scratch)"
Reference = Annotated[str | None, Option(metavar="ROW", help=_TESTED)]
Comparison = Annotated[Path | None, Option("--out", help="folder to write (default: comparison-KEY beside the runs)")]


@app.command()
def compare(
    *,
    folders: Folders,
    home: Home = Path("runs"),
    experiment: InExperiment = None,
    uri: Annotated[str | None, Option(help="MLflow server of the experiment, if folders are out of reach")] = None,
    name: Names,
    kind: Kind = None,
    metric: Metric = None,
    also: Further,
    by: Fields,
    reference: Reference = None,
    curve: Annotated[list[str], _several("METRIC...", "draw the pretrainings' metrics")],
    target: Comparison = None,
) -> None:
    """Put any runs side by side: table, CSV, figures."""
    with loading():
        from orchestrator.results import compare as comparison
        from orchestrator.results import selection
        from orchestrator.results.text import as_ranked

    asked = comparison.Request(kind, tuple(name), metric, tuple(also), tuple(by), reference, tuple(curve))
    with phase("reading the runs"):
        if uri:
            from orchestrator.results.server_cards import on_server

            choice = on_server(uri, experiment, home)
        else:
            choice = selection.in_folders(folders, home, experiment)
    compared = comparison.compare(choice, asked)
    means = [line.summary.mean for line in compared.lines]
    is_best = any(line.alike == () for line in compared.lines)
    out.print(as_ranked(*compared.text, compared.asked.metric, means, is_best))
    with phase("drawing the figures"):
        files = comparison.write(compared, target or compared.folder)
    for file in files:
        out.print(str(file), soft_wrap=True, highlight=False)
    out.print(f"MLflow: {comparison.log(compared, files)}", soft_wrap=True, highlight=False, markup=False)
    if page := comparison.page(compared):
        show_page(page.address, page.home)


@app.command()
def report(
    *,
    folders: Folders,
    home: Home = Path("runs"),
    experiment: InExperiment = None,
    name: Names,
    kind: Kind = None,
    metric: Metric = None,
    also: Further,
    by: Fields,
    reference: Reference = None,
    target: Annotated[
        Path | None, Option("--out", help="file to write (default: report.html beside the runs)")
    ] = None,
) -> None:
    """Write one page that answers which row is best, with its proof."""
    with loading():
        from orchestrator.report.page import REPORT, write
        from orchestrator.results import compare as comparison
        from orchestrator.results import selection

    asked = comparison.Request(kind, tuple(name), metric, tuple(also), tuple(by), reference)
    with phase("reading the runs"):
        choices = [selection.in_folders([folder], home) for folder in folders] if len(folders) > 1 else []
        if not choices or any(choice.group is None for choice in choices):  # no tables: runs, side by side
            choices = [selection.in_folders(folders, home, experiment)]
        results = [comparison.compare(choice, asked) for choice in choices]
    with phase("writing the report"):
        group = results[0].choice.group
        usual = Path(group) if group and len(results) == 1 else results[0].folder
        file = write(results, target or usual / REPORT)
    if len(results) == 1:
        out.print(f"MLflow: {comparison.log(results[0], [file])}", soft_wrap=True, highlight=False, markup=False)
    out.print(f"report: {file}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def export(
    run: Annotated[
        Path, Argument(help="folder of a pretraining or a fine-tuning; of a table or a sweep: its winner")
    ],
    target: Annotated[Path | None, Option("--out", help="folder to write weights and a loading script to")] = None,
    to: Annotated[
        Literal["monai", "nnunet", "torchvision", "safetensors"], Option(help="tool to write for")
    ] = "monai",
    register: Annotated[str | None, Option(metavar="NAME", help="make it a version of this model in MLflow")] = None,
    uri: Annotated[str | None, Option(help="MLflow to register in (default: that of the run)")] = None,
) -> None:
    """Write weights that another tool's own classes load, or register them in MLflow."""
    if target is None and register is None:
        raise ValueError("nothing to do; give a folder with --out, or the name of a model with --register, or both")
    if uri is not None and register is None:
        raise ValueError(f"--uri {uri}: only what is registered goes to MLflow; add --register NAME")
    with loading():
        from orchestrator.results import registry
        from orchestrator.runs.export import export

    chosen = registry.winner(run)
    if chosen != run:
        out.print(f"winner: {chosen}", soft_wrap=True, highlight=False, markup=False)
    for path in export(chosen, target, to, registry.scores_of(chosen)) if target else []:
        out.print(str(path), soft_wrap=True, highlight=False)
    if register:
        with phase("sending the model to MLflow"):
            made = registry.register(chosen, register, uri)
        said = f"registered: {made.name}, version {made.number}, in MLflow at {made.uri}"
        out.print(said, soft_wrap=True, highlight=False, markup=False)


def _sizes(text: str) -> tuple[int, ...]:
    """Read whole numbers between commas; raise ValueError for anything else."""
    found = text.split(",")
    if not all(one.strip().isdecimal() for one in found):
        raise ValueError(f"--size {text}: expected a whole number, or one per axis, such as 64,96,96")
    return tuple(int(one) for one in found)


@app.command()
def embed(
    encoder: Annotated[Path, Argument(help="folder of a run, or of an export with its settings")],
    shards: Annotated[str, Argument(help="folder or address of shards")],
    target: Annotated[Path, Option("--out", help="Parquet file to write")],
    split: Annotated[str | None, Option(help="split to embed (default: all)")] = None,
    size: Annotated[
        str | None, Option(help="resize each sample to this, as 96 or 64,96,96 (default: pad it)")
    ] = None,
    level: Annotated[int, Option(help="map to average: 0 is the finest, -1 the last")] = -1,
) -> None:
    """Write an encoder's features of each sample to Parquet."""
    sizes = _sizes(size) if size else None
    with loading():
        from orchestrator.runs import embed as embedding

    side = sizes[0] if sizes and len(sizes) == 1 else sizes
    rows = embedding.embed(embedding.EmbeddingRequest(encoder, shards, split, side, level), target)
    out.print(f"{rows:,} rows: {target}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def ui(home: Home = Path("runs"), port: Annotated[int, Option(help="port on 127.0.0.1")] = 5000) -> int:
    """Open MLflow's page on the runs of a home."""
    from orchestrator.results.ui import serve

    return serve(home, port)
