"""Commands that train: pretrain, probe, finetune, table, sweep."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from orchestrator.commands.console import FAILED, Commands, add_command, loading, out, say, say_next, show_page
from orchestrator.terminal.console import typed
from orchestrator.terminal.progress import phase


def add(commands: Commands) -> None:
    """Add these commands."""
    _add_experiment(commands, "pretrain", "pretrain an encoder", _pretrain)
    _add_experiment(commands, "probe", "pretrain unless done, and judge the frozen encoder", _probe)
    _add_experiment(commands, "finetune", "pretrain unless done, and fine-tune on the downstream task", _finetune)
    _add_table(commands)
    _add_sweep(commands)


def _add_experiment(commands: Commands, name: str, help_: str, run: Callable) -> None:
    parser = add_command(commands, name, help_, run)
    parser.add_argument("experiment", help="YAML file, see experiments/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="FIELD=VALUE", help="such as method.crops.iou='[0.3,0.6]'"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run and what it would need")


def _pretrain(arguments: argparse.Namespace) -> None:
    with loading():
        from orchestrator.config.files import load
        from orchestrator.runs import dry_run
        from orchestrator.runs.pretrain import pretrain

    experiment = load(arguments.experiment, arguments.overrides)
    if arguments.dry_run:
        out.print(dry_run.describe(experiment))
        return
    done = pretrain(experiment)
    out.print(f"encoder: {done.folder / 'encoder'}", soft_wrap=True)


def _probe(arguments: argparse.Namespace) -> None:
    with loading():
        from orchestrator.cluster import connection
        from orchestrator.config.files import load
        from orchestrator.runs import dry_run
        from orchestrator.runs.pretrain import pretrain
        from orchestrator.runs.probe import probe, probe_set

    experiment = load(arguments.experiment, arguments.overrides)
    if arguments.dry_run:
        out.print(dry_run.describe(experiment, probed=True))
        return
    probe_set(experiment)
    with connection.connected():
        probes = probe(experiment, pretrain(experiment))
    table = Table("probe", "pretrained", "initial weights")
    for name in sorted({*probes.pretrained.metrics, *probes.initial.metrics}):
        values = (one.metrics.get(name) for one in (probes.pretrained, probes.initial))
        table.add_row(name.removeprefix("probe/"), *("-" if value is None else f"{value:.4f}" for value in values))
    out.print(table, highlight=False)
    for remark in probes.pretrained.remarks:
        out.print(f"pretrained, {remark}", soft_wrap=True, highlight=False, markup=False)


def _finetune(arguments: argparse.Namespace) -> None:
    with loading():
        from orchestrator.cluster import connection
        from orchestrator.config.files import load
        from orchestrator.runs import dry_run
        from orchestrator.runs.finetune import check, finetune
        from orchestrator.runs.pretrain import pretrain

    experiment = load(arguments.experiment, arguments.overrides)
    if arguments.dry_run:
        out.print(dry_run.describe(experiment, finetuned=True))
        return
    check(experiment)
    with connection.connected():
        done = finetune(experiment, pretrain(experiment))
    for name, value in sorted(done.scores.items()):
        out.print(f"{name:32} {value:.4f}", highlight=False)
    out.print(f"network: {done.folder / 'network'}", soft_wrap=True)


def _add_table(commands: Commands) -> None:
    parser = add_command(commands, "table", "run what a table lacks, and print it beside the paper's numbers", _table)
    parser.add_argument("table", help="YAML file with rows, see experiments/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="FIELD=VALUE", help="changes to every row's experiment"
    )
    parser.add_argument("--cohort", help="run it on another cohort that the table names, such as phantom")
    parser.add_argument("--dry-run", action="store_true", help="check every row, and print what it would need")


def _table(arguments: argparse.Namespace) -> int:
    with loading():
        from orchestrator.sweeps import forecast
        from orchestrator.tables import table as tables
        from orchestrator.tables.run import run
        from orchestrator.tables.text import terminal

    table = tables.load(arguments.table, arguments.overrides, arguments.cohort)
    if arguments.dry_run:
        out.print(forecast.of_table(table))
        return 0
    lines = run(table, say)
    out.print(terminal(table.config, lines))
    _show_results(table.folder, table.base.home, table.config.metric)
    say_next(f"raydiology compare {typed(table.folder.parent)}")
    return FAILED if any(line.failures for line in lines) else 0


def _add_sweep(commands: Commands) -> None:
    parser = add_command(commands, "sweep", "search an experiment's fields for what scores best", _sweep)
    parser.add_argument("sweep", help="YAML file with a space, see experiments/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="FIELD=VALUE", help="changes to every trial's experiment"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the ends of the space, and print what would be searched"
    )


def _sweep(arguments: argparse.Namespace) -> int:
    with loading():
        from orchestrator.sweeps import forecast, standings
        from orchestrator.sweeps import sweep as sweeps

    sweep = sweeps.load(arguments.sweep, arguments.overrides)
    if arguments.dry_run:
        for line in forecast.of_sweep(sweep):
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        return 0
    ended = sweeps.run(sweep, say)
    out.print(standings.terminal(sweep.config, ended))
    _show_results(sweep.folder, sweep.base.home, sweep.config.objective.metric)
    return 0 if standings.best(sweep.config, ended) else FAILED


def _show_results(folder: Path, home: str, metric: str) -> None:
    """Print where the files of a table or a sweep are, and where MLflow shows its runs on its metric."""
    from orchestrator.results.compare import page_of

    out.print(f"files:  {folder}", soft_wrap=True, highlight=False, markup=False)
    with phase("reading the runs for MLflow's page"):
        page = page_of(folder, home, metric)
    if page:
        show_page(page.address, page.home)
