"""Commands that train: pretrain, probe, finetune, table, sweep."""

from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from orchestrator.commands.console import FAILED, loading, out, say, say_next, show_page
from orchestrator.commands.usage import Commands, UsageError
from orchestrator.terminal.console import typed
from orchestrator.terminal.progress import phase

app = Commands()


Experiment = Annotated[str, Argument(help="YAML file, see experiments/")]
_CHANGES = "changes to the experiment, or to that of every row or trial, such as method.crops.iou='[0.3,0.6]'"
Overrides = Annotated[
    list[str], Argument(metavar="FIELD=VALUE", default_factory=list, show_default=False, help=_CHANGES)
]
DryRun = Annotated[bool, Option("--dry-run", help="check all that would run, and print what it would need")]
_TIMED = "with --dry-run: time 20 steps of each training on this machine, and forecast time and memory from them"
Measure = Annotated[bool, Option("--measure", help=_TIMED)]


def _refuse_measure_alone(dry_run: bool, measure: bool) -> None:
    if measure and not dry_run:
        raise UsageError("--measure: it times steps for the forecast of a dry run; add --dry-run, or leave it out")


@app.command()
def pretrain(experiment: Experiment, overrides: Overrides, dry_run: DryRun = False, measure: Measure = False) -> None:
    """Pretrain an encoder."""
    _refuse_measure_alone(dry_run, measure)
    with loading():
        from orchestrator.config.files import load
        from orchestrator.runs.dry_run import describe
        from orchestrator.runs.pretrain import pretrain

    asked = load(experiment, overrides)
    if dry_run:
        out.print(describe(asked, measured=measure))
        return
    done = pretrain(asked)
    out.print(f"encoder: {done.folder / 'encoder'}", soft_wrap=True)


@app.command()
def probe(experiment: Experiment, overrides: Overrides, dry_run: DryRun = False, measure: Measure = False) -> None:
    """Pretrain unless done, and judge the frozen encoder."""
    _refuse_measure_alone(dry_run, measure)
    with loading():
        from orchestrator.cluster import connection
        from orchestrator.config.files import load
        from orchestrator.runs.dry_run import describe
        from orchestrator.runs.pretrain import pretrain
        from orchestrator.runs.probe import probe, probe_set

    asked = load(experiment, overrides)
    if dry_run:
        out.print(describe(asked, probed=True, measured=measure))
        return
    probe_set(asked)
    with connection.connected():
        probes = probe(asked, pretrain(asked))
    table = Table("probe", "pretrained", "initial weights")
    for name in sorted({*probes.pretrained.metrics, *probes.initial.metrics}):
        values = (one.metrics.get(name) for one in (probes.pretrained, probes.initial))
        table.add_row(name.removeprefix("probe/"), *("-" if value is None else f"{value:.4f}" for value in values))
    out.print(table, highlight=False)
    for remark in probes.pretrained.remarks:
        out.print(f"pretrained, {remark}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def finetune(experiment: Experiment, overrides: Overrides, dry_run: DryRun = False, measure: Measure = False) -> None:
    """Pretrain unless done, and fine-tune on the downstream task."""
    _refuse_measure_alone(dry_run, measure)
    with loading():
        from orchestrator.cluster import connection
        from orchestrator.config.files import load
        from orchestrator.runs.dry_run import describe
        from orchestrator.runs.finetune import check, finetune
        from orchestrator.runs.pretrain import pretrain

    asked = load(experiment, overrides)
    if dry_run:
        out.print(describe(asked, finetuned=True, measured=measure))
        return
    check(asked)
    with connection.connected():
        done = finetune(asked, pretrain(asked))
    for name, value in sorted(done.scores.items()):
        out.print(f"{name:32} {value:.4f}", highlight=False)
    out.print(f"network: {done.folder / 'network'}", soft_wrap=True)


@app.command()
def table(
    table: Annotated[str, Argument(help="YAML file with rows, see experiments/")],
    overrides: Overrides,
    cohort: Annotated[str | None, Option(help="another cohort that the table names, such as phantom")] = None,
    dry_run: DryRun = False,
    measure: Measure = False,
) -> int:
    """Run what a table lacks, and print it beside the paper's numbers."""
    _refuse_measure_alone(dry_run, measure)
    with loading():
        from orchestrator.sweeps import forecast
        from orchestrator.tables import table as tables
        from orchestrator.tables.run import run
        from orchestrator.tables.text import terminal

    asked = tables.load(table, overrides, cohort)
    if dry_run:
        out.print(forecast.of_table(asked, measure))
        return 0
    lines = run(asked, say)
    out.print(terminal(asked.config, lines))
    if not asked.experiments:
        out.print(f"files:  {asked.folder}", soft_wrap=True, highlight=False, markup=False)
        return 0
    _show_results(asked.folder, asked.base.home)
    return FAILED if any(line.failures for line in lines) else 0


@app.command()
def sweep(
    sweep: Annotated[str, Argument(help="YAML file with a space, see experiments/")],
    overrides: Overrides,
    dry_run: DryRun = False,
    measure: Measure = False,
) -> int:
    """Search an experiment's fields for what scores best."""
    _refuse_measure_alone(dry_run, measure)
    with loading():
        from orchestrator.sweeps import forecast, standings
        from orchestrator.sweeps import sweep as sweeps

    asked = sweeps.load(sweep, overrides)
    if dry_run:
        for line in forecast.of_sweep(asked, measure):
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        return 0
    ended = sweeps.run(asked, say)
    out.print(standings.terminal(asked.config, ended))
    _show_results(asked.folder, asked.base.home)
    return 0 if standings.best(asked.config, ended) else FAILED


def _show_results(folder: Path, home: str) -> None:
    """Print where the files of a table or a sweep are, where MLflow shows its runs, and write and name its report."""
    from orchestrator.report.page import REPORT, write
    from orchestrator.results.compare import Request, compare, log, page
    from orchestrator.results.selection import in_folders

    out.print(f"files:  {folder}", soft_wrap=True, highlight=False, markup=False)
    with phase("reading the runs for MLflow's page"):
        compared = compare(in_folders([folder], Path(home)), Request())
        shown = page(compared)
    if shown:
        show_page(shown.address, shown.home)
    say_next(f"raydiology compare {typed(folder.parent)}")
    with phase("writing the report"):
        report = write([compared], folder / REPORT)
        log(compared, [report])
    out.print(f"report: {report}", soft_wrap=True, highlight=False, markup=False)
