"""The command line.

Exit codes: 0 done, 1 a run failed, 2 the request cannot work as given, 130 interrupted, 143 stopped as asked.

Commands import what they need when they run: `raydiology methods` should not wait for Ray.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from data.sources import LAYOUTS, SourceOptions

FAILED, REFUSED, INTERRUPTED, STOPPED = 1, 2, 130, 143
_INGEST_FIELDS = ("source", "layout", "recipe", "out", "val_fraction", "test_fraction", "seed", "max_bad", "strict",
                  "overwrite", "keep_names")  # fmt: skip
_UNUSUAL_OPTIONS = {"rescale": {"nargs": 2, "type": float}, "label_names": {"type": yaml.safe_load}}

out = Console()
err = Console(stderr=True)
Commands = argparse._SubParsersAction


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; turn what can go wrong into a message in words and an exit code."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int | None] = arguments.run
    try:
        return run(arguments) or 0
    except (ValueError, FileNotFoundError) as error:
        return _failed(arguments.command, error, REFUSED)
    except RuntimeError as error:
        codes = {"RunError": FAILED, "StoppedError": STOPPED}
        if type(error).__name__ not in codes:
            raise
        return _failed(arguments.command, error, codes[type(error).__name__])
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED


def _failed(command: str, error: Exception, code: int) -> int:
    err.print(f"{command}: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raydiology", description="Pretrain on medical images, and find out which pretraining was worth it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_phantom(commands)
    _add_ingest(commands)
    _add_shards(commands)
    _add_experiment(commands, "pretrain", "pretrain an encoder", _pretrain)
    _add_experiment(commands, "finetune", "pretrain unless done, and fine-tune on the downstream task", _finetune)
    _add_table(commands)
    _add_sweep(commands)
    _add_compare(commands)
    _add_export(commands)
    _add_submit(commands)
    _add_job(commands)
    ui = _add(commands, "ui", "open MLflow's page on the runs of a home", _ui)
    ui.add_argument("--home", default="runs", help="folder of the runs (default: runs)")
    ui.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")
    doctor = _add(commands, "doctor", "check this machine: packages, devices, Ray, MLflow", _doctor)
    doctor.add_argument("--home", default="runs", help="folder of the runs (default: runs)")
    methods = _add(commands, "methods", "list methods, encoders and recipes", _methods)
    methods.add_argument("--json", action="store_true", help="print JSON")
    _add(commands, "schema", "print the JSON Schema of experiment files, for editors", _schema)
    return parser


def _add(commands: Commands, name: str, help_: str, run: Callable) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_phantom(commands: Commands) -> None:
    parser = _add(commands, "phantom", "write a synthetic abdominal CT cohort with labels, nnU-Net layout", _phantom)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--labelled", type=int, default=12, help="patients with labels (default: 12)")
    parser.add_argument("--unlabelled", type=int, default=12, help="patients without (default: 12)")
    parser.add_argument("--seed", type=int, default=0)


def _phantom(arguments: argparse.Namespace) -> None:
    from data.phantom import write_cohort

    write_cohort(arguments.out, arguments.labelled, arguments.unlabelled, seed=arguments.seed)
    out.print(f"{arguments.labelled} labelled and {arguments.unlabelled} unlabelled phantoms in {arguments.out}")


def _add_ingest(commands: Commands) -> None:
    parser = _add(commands, "ingest", "read scans once and write them as shards", _ingest)
    parser.add_argument("--config", help="YAML file with these options, and with further sources under also:")
    parser.add_argument("--source", help="folder, or s3://bucket/folder")
    parser.add_argument("--layout", choices=sorted(LAYOUTS))
    parser.add_argument("--recipe", help="preprocessing by name, see `raydiology methods`")
    parser.add_argument("--out", help="folder of the shards, or s3://bucket/folder")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a recipe's field")
    parser.add_argument("--val-fraction", type=float, help="patients held out for validation (default: 0.2)")
    parser.add_argument("--test-fraction", type=float, help="patients held out for testing (default: 0)")
    parser.add_argument("--seed", type=int, help="seed of splits and mixing (default: 0)")
    parser.add_argument("--max-bad", type=float, help="fail above this share of bad studies (default: 0.1)")
    parser.add_argument("--strict", action="store_true", default=None, help="stop at the first bad study")
    parser.add_argument(
        "--overwrite", action="store_true", default=None, help="replace shards of another source or recipe"
    )
    parser.add_argument(
        "--keep-names", action="store_true", default=None, help="keep file names in the quarantine list"
    )
    layout = parser.add_argument_group("how studies are found; see data/sources/study.py")
    for name, field in SourceOptions.model_fields.items():
        many = _UNUSUAL_OPTIONS.get(name, {})
        shown = "" if field.default is None else f"default: {field.default}"
        layout.add_argument(f"--{name.replace('_', '-')}", help=shown, **many)


def _ingest(arguments: argparse.Namespace) -> int:
    from orchestrator.ingest import ingest
    from orchestrator.ingest_request import load

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    options = {name: given[name] for name in SourceOptions.model_fields if name in given}
    asked = {name: given[name] for name in _INGEST_FIELDS if name in given}
    if options:
        asked["options"] = options
    if arguments.set:
        asked["changes"] = dict(_assignment(text) for text in arguments.set)
    report = ingest(load(asked, arguments.config), err)
    out.print(report.summary(), soft_wrap=True, highlight=False, markup=False)
    return FAILED if report.too_many_bad else 0


def _assignment(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: expected FIELD=VALUE, such as spacing_mm='[2,2,2]'")
    return name, yaml.safe_load(value)


def _add_shards(commands: Commands) -> None:
    parser = _add(commands, "shards", "show or verify shards", _shards)
    parser.add_argument("action", choices=("show", "verify"))
    parser.add_argument("shards", help="folder of the shards, or s3://bucket/folder")


def _shards(arguments: argparse.Namespace) -> int:
    from data.shardcheck import describe, verify
    from data.shardset import ShardSet

    if arguments.action == "show":
        table = Table("", "", show_header=False, box=None)
        table.columns[1].overflow = "fold"
        for line in describe(ShardSet.open(arguments.shards)):
            table.add_row(*line)
        out.print(table)
        return 0
    findings = list(verify(arguments.shards))
    for finding in findings:
        out.print(finding, soft_wrap=True, highlight=False, markup=False)
    out.print(f"{len(findings)} findings" if findings else "every byte is as it was written")
    return FAILED if findings else 0


def _add_experiment(commands: Commands, name: str, help_: str, run: Callable) -> None:
    parser = _add(commands, name, help_, run)
    parser.add_argument("experiment", help="YAML file, see experiments/")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="such as method.crops.iou='[0.3,0.6]'")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and what it would need")


def _pretrain(arguments: argparse.Namespace) -> None:
    from orchestrator import config, estimate
    from orchestrator.pretrain import pretrain

    experiment = config.load(arguments.experiment, arguments.overrides)
    if arguments.dry_run:
        out.print(estimate.describe(experiment))
        return
    done = pretrain(experiment)
    out.print(f"encoder: {done.folder / 'encoder'}", soft_wrap=True)


def _finetune(arguments: argparse.Namespace) -> None:
    from orchestrator import cluster, config, estimate
    from orchestrator.finetune import check, finetune
    from orchestrator.pretrain import pretrain

    experiment = config.load(arguments.experiment, arguments.overrides)
    if arguments.dry_run:
        out.print(estimate.describe(experiment))
        return
    check(experiment)
    with cluster.connected():
        done = finetune(experiment, pretrain(experiment))
    for name, value in sorted(done.scores.items()):
        out.print(f"{name:32} {value:.4f}", highlight=False)
    out.print(f"network: {done.folder / 'network'}", soft_wrap=True)


def _add_table(commands: Commands) -> None:
    parser = _add(commands, "table", "run what a table lacks, and print it beside the paper's numbers", _table)
    parser.add_argument("table", help="YAML file with rows, see experiments/")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="changes of every row's experiment")


def _table(arguments: argparse.Namespace) -> int:
    from orchestrator import table as tables
    from orchestrator.typeset import terminal

    table = tables.load(arguments.table, arguments.overrides)
    lines = tables.run(table, lambda text: err.print(text, highlight=False, markup=False, soft_wrap=True))
    out.print(terminal(table.config, lines))
    home = table.experiments[0][1].home
    out.print(f"files:  {table.folder}\nMLflow: raydiology ui --home {home}", soft_wrap=True, highlight=False)
    return FAILED if any(line.failures for line in lines) else 0


def _add_sweep(commands: Commands) -> None:
    parser = _add(commands, "sweep", "search an experiment's fields for what scores best", _sweep)
    parser.add_argument("sweep", help="YAML file with a space, see experiments/")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="changes of every trial's experiment")
    parser.add_argument("--dry-run", action="store_true", help="print what would be searched")


def _sweep(arguments: argparse.Namespace) -> int:
    from orchestrator import standings
    from orchestrator import sweep as sweeps

    sweep = sweeps.load(arguments.sweep, arguments.overrides)
    if arguments.dry_run:
        for line in sweeps.describe(sweep):
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        return 0
    ended = sweeps.run(sweep, lambda text: err.print(text, highlight=False, markup=False, soft_wrap=True))
    out.print(standings.terminal(sweep.config, ended))
    out.print(
        f"files:  {sweep.folder}\nMLflow: raydiology ui --home {sweep.base.home}", soft_wrap=True, highlight=False
    )
    return 0 if standings.best(sweep.config, ended) else FAILED


def _add_compare(commands: Commands) -> None:
    parser = _add(commands, "compare", "put any runs side by side: table, CSV, figures", _compare)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="of a run, a table, a sweep or an experiment")
    parser.add_argument("--home", default="runs", help="folder of the runs (default: runs)")
    parser.add_argument("--experiment", help="name of the experiment, where no folder is given")
    parser.add_argument("--uri", help="MLflow server to read the experiment from, where folders are out of reach")
    parser.add_argument("--name", action="append", default=[], help="pattern of names, rows or folders of runs")
    parser.add_argument("--kind", choices=("finetune", "pretrain", "trial"), help="(default: what is judged)")
    parser.add_argument("--metric", help="(default: score; of pretrainings collapse)")
    parser.add_argument("--also", nargs="+", default=[], metavar="METRIC", help="show these metrics too")
    parser.add_argument("--by", nargs="+", default=[], metavar="FIELD", help="put together by: row, or fields")
    parser.add_argument("--reference", metavar="ROW", help="test the others against this row (default: scratch)")
    parser.add_argument("--curve", nargs="+", default=[], metavar="METRIC", help="draw the pretrainings' metrics")
    parser.add_argument("--out", help="folder to write (default: comparison-KEY beside the runs)")


def _compare(arguments: argparse.Namespace) -> None:
    from orchestrator import choose, compare
    from orchestrator.typeset import as_terminal

    folders, home = [Path(folder) for folder in arguments.folders], Path(arguments.home)
    if arguments.uri:
        from orchestrator.gather_server import on_server

        choice = on_server(arguments.uri, arguments.experiment, home)
    else:
        choice = choose.in_folders(folders, home, arguments.experiment)
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
    out.print(as_terminal(*compared.text))
    files = compare.write(compared, Path(arguments.out) if arguments.out else compared.folder)
    for file in files:
        out.print(str(file), soft_wrap=True, highlight=False)
    out.print(f"MLflow: {compare.log(compared, files)}", soft_wrap=True, highlight=False, markup=False)
    for page in compare.pages(compared):
        out.print(page, soft_wrap=True, highlight=False, markup=False)


def _add_export(commands: Commands) -> None:
    parser = _add(commands, "export", "write weights that MONAI's own classes load strictly", _export)
    parser.add_argument("run", help="folder of a pretraining or a fine-tuning below the home")
    parser.add_argument("--out", required=True, help="folder to write weights and a loading script to")


def _export(arguments: argparse.Namespace) -> None:
    from orchestrator.export import export

    for path in export(Path(arguments.run), Path(arguments.out)):
        out.print(str(path), soft_wrap=True, highlight=False)


def _add_submit(commands: Commands) -> None:
    parser = _add(commands, "submit", "run a command on a Ray cluster as a job, and show its output", _submit)
    _add_address(parser)
    parser.add_argument("--working-dir", default=".", help="checkout of Raydiology that is uploaded (default: .)")
    parser.add_argument("--runtime-env", help="YAML file with Ray's runtime environment, such as env_vars")
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and return")
    parser.add_argument("job", nargs="+", metavar="-- COMMAND", help="such as -- pretrain experiments/voco/btcv.yaml")


def _add_address(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    parser.add_argument("--address", default=default, help=f"Ray's dashboard (default: {default})")


def _submit(arguments: argparse.Namespace) -> int:
    from orchestrator import submit

    runtime_env = submit.read_runtime_env(arguments.runtime_env)
    client = submit.connect(arguments.address)
    _check_job(arguments.job, Path(arguments.working_dir))
    job = submit.submit(client, arguments.job, Path(arguments.working_dir), runtime_env)
    err.print(f"job {job} at {arguments.address}", highlight=False)
    if arguments.no_wait:
        out.print(job)
        return 0
    return _follow(client, job, arguments.address)


def _check_job(job: list[str], folder: Path) -> None:
    """Refuse here, before anything is uploaded, what would fail there."""
    from orchestrator import config, sweep, table
    from orchestrator.provenance import JOB_VARIABLE

    asked = _parser().parse_args(job)
    if asked.command in ("submit", "job", "ui", "doctor", "schema", "methods"):
        raise ValueError(f"{asked.command} is no job; expected one that computes, such as pretrain, table or ingest")
    os.environ[JOB_VARIABLE] = "1"
    if "experiment" in asked:
        config.load(folder / asked.experiment, asked.overrides)
    elif asked.command == "table":
        table.load(str(folder / asked.table), asked.overrides)
    elif asked.command == "sweep":
        sweep.load(str(folder / asked.sweep), asked.overrides)


def _follow(client: Any, job: str, address: str) -> int:
    from orchestrator import submit

    try:
        done = submit.follow(client, job, _write)
    except KeyboardInterrupt:
        given = f"--address {address} " if address != submit.DEFAULT_ADDRESS else ""
        err.print(
            f"the job goes on; `raydiology job logs {given}{job}` shows it again, `raydiology job stop {given}{job}` "
            "saves a checkpoint and ends it",
            soft_wrap=True,
            highlight=False,
        )
        return INTERRUPTED
    style = None if done.status == "SUCCEEDED" else "red"
    # A job that never ran its command has said nothing in its output.
    why = f": {done.message}" if done.status == "FAILED" and done.exit_code is None else ""
    err.print(f"job {job}: {done.status}{why}", style=style, highlight=False, markup=False, soft_wrap=True)
    return done.code


def _write(text: str) -> None:
    """Write a job's output as it is: it was laid out where it was printed."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _add_job(commands: Commands) -> None:
    parser = _add(commands, "job", "list submitted jobs; show a job's status or output; stop it", _job)
    parser.add_argument("action", choices=("list", "status", "logs", "stop"), help="stop saves a checkpoint first")
    parser.add_argument("job", nargs="?", metavar="ID", help="as `raydiology submit` prints it")
    _add_address(parser)


def _job(arguments: argparse.Namespace) -> int:
    from orchestrator import submit

    if (arguments.job is None) != (arguments.action == "list"):
        raise ValueError("job list takes no ID, job status, logs and stop take one; `raydiology job list` shows them")
    client = submit.connect(arguments.address)
    if arguments.action == "logs":
        return _follow(client, arguments.job, arguments.address)
    if arguments.action == "stop":
        err.print(f"job {arguments.job}: asked to save a checkpoint and end", highlight=False)
        jobs = [submit.stop(client, arguments.job)]
    else:
        jobs = submit.jobs(client) if arguments.action == "list" else [submit.find(client, arguments.job)]
    table = Table("job", "status", "started", "took", "command")
    table.columns[0].no_wrap = True
    for job in jobs:
        table.add_row(job.id, job.status, job.began, job.took, job.command)
    out.print(table)
    return 0


def _ui(arguments: argparse.Namespace) -> int:
    from orchestrator.ui import serve

    return serve(Path(arguments.home), arguments.port)


def _doctor(arguments: argparse.Namespace) -> int:
    from orchestrator.doctor import examine

    findings = examine(Path(arguments.home))
    table = Table("", "subject", "found", "to do")
    for finding in findings:
        table.add_row("ok" if finding.well else "[red]--[/red]", finding.subject, finding.found, finding.remedy)
    out.print(table)
    return 0 if all(finding.well for finding in findings) else FAILED


def _methods(arguments: argparse.Namespace) -> None:
    from orchestrator.catalogue import catalogue

    kinds = catalogue()
    if arguments.json:
        sys.stdout.write(json.dumps(kinds, indent=2) + "\n")
        return
    for kind, entries in kinds.items():
        table = Table("name", "what it is", "fields and defaults", title=kind, title_justify="left")
        for entry in entries:
            fields = "\n".join(f"{name} = {value}" for name, value in entry["fields"].items())
            table.add_row(entry["name"], entry["about"], fields)
        out.print(table, highlight=False)


def _schema(arguments: argparse.Namespace) -> None:
    from orchestrator.config import schema

    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
