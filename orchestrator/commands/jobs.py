"""Commands on jobs of a Ray cluster: submit, job."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from orchestrator.commands.console import Commands, add_command, err, out


def add(commands: Commands) -> None:
    """Add these commands."""
    _add_submit(commands)
    _add_job(commands)


def _add_submit(commands: Commands) -> None:
    parser = add_command(commands, "submit", "run a command on a Ray cluster as a job, and show its output", _submit)
    _add_address(parser)
    parser.add_argument("--working-dir", default=".", help="checkout of Raydiology that is uploaded (default: .)")
    parser.add_argument("--runtime-env", help="YAML file with Ray's runtime environment, such as env_vars")
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and return")
    parser.add_argument(
        "job_command",
        nargs="*",
        default=[],
        metavar="-- COMMAND",
        help="such as -- pretrain experiments/voco/btcv.yaml",
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    parser.add_argument("--address", default=default, help=f"Ray's dashboard (default: {default})")


def _submit(arguments: argparse.Namespace) -> int:
    from orchestrator.cluster import jobs as submit
    from orchestrator.cluster.package import package_of

    runtime_env = submit.read_runtime_env(arguments.runtime_env)
    folder = Path(arguments.working_dir)
    package = package_of(folder, _check_job(arguments.job_command[0], arguments.job, folder))
    client = submit.connect(arguments.address)
    for remark in package.remarks():
        err.print(remark, soft_wrap=True, highlight=False, markup=False)
    job = submit.submit(client, arguments.job_command, package, runtime_env)
    err.print(f"job {job} at {arguments.address}", highlight=False)
    if arguments.no_wait:
        out.print(job)
        return 0
    return _follow(client, job, arguments.address)


def _check_job(command: str, asked: argparse.Namespace, folder: Path) -> list[str]:
    """Refuse, before anything is uploaded, a command that would fail on the cluster; return the files it names."""
    from orchestrator.config.files import load
    from orchestrator.provenance import as_in_job
    from orchestrator.sweeps import sweep
    from orchestrator.tables import table

    if command in ("submit", "job", "init", "ui", "doctor", "schema", "methods"):
        raise ValueError(
            f"{command} is not a job; expected a command that computes, such as pretrain, table or ingest"
        )
    with as_in_job():
        if "experiment" in asked:
            load(folder / asked.experiment, asked.overrides)
            return [asked.experiment]
        if "table" in asked:
            table.load(folder / asked.table, asked.overrides, asked.cohort)
            return [asked.table]
        if "sweep" in asked:
            sweep.load(folder / asked.sweep, asked.overrides)
            return [asked.sweep]
    if command != "ingest" or asked.config is None:
        return []
    if not (folder / asked.config).is_file():
        raise ValueError(f"ingest file {asked.config}: no such file in the working directory {folder}")
    return [asked.config]


def _follow(client: Any, job: str, address: str) -> int:
    from orchestrator import stop
    from orchestrator.cluster import jobs as submit

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
        return stop.exit_code()
    style = None if done.status == "SUCCEEDED" else "red"
    # The output of a job that never ran its command does not say why.
    why = f": {done.message}" if done.status == "FAILED" and done.exit_code is None else ""
    err.print(f"job {job}: {done.status}{why}", style=style, highlight=False, markup=False, soft_wrap=True)
    return done.code


def _write(text: str) -> None:
    """Write a job's output unchanged: its lines were laid out where they were printed."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _add_job(commands: Commands) -> None:
    parser = add_command(commands, "job", "list submitted jobs; show a job's status or output; stop it", _job)
    parser.add_argument("action", choices=("list", "status", "logs", "stop"), help="stop saves a checkpoint first")
    parser.add_argument("job", nargs="?", metavar="ID", help="as `raydiology submit` prints it")
    _add_address(parser)


def _job(arguments: argparse.Namespace) -> int:
    from orchestrator.cluster import jobs as submit

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
