"""Commands on jobs of a Ray cluster: submit, job."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.table import Table
from typer import Argument, Context, Option

from orchestrator.commands.console import err, out
from orchestrator.commands.usage import Commands, parse

DASHBOARD = "http://127.0.0.1:8265"
Address = Annotated[str, Option(envvar="RAY_API_SERVER_ADDRESS", show_envvar=True, help="Ray's dashboard")]
_EXAMPLE = "such as -- pretrain experiments/voco/btcv.yaml"
JobCommand = Annotated[
    list[str], Argument(metavar="-- COMMAND", default_factory=list, show_default=False, help=_EXAMPLE)
]

app = Commands()


@app.command()
def submit(
    context: Context,
    job_command: JobCommand,
    address: Address = DASHBOARD,
    working_dir: Annotated[Path, Option(help="checkout of Raydiology that is uploaded")] = Path(),
    runtime_env: Annotated[str | None, Option(help="YAML file of Ray's runtime environment: env_vars ...")] = None,
    no_wait: Annotated[bool, Option("--no-wait", help="print the job's id and return")] = False,
) -> int:
    """Run a command on a Ray cluster as a job, and show its output."""
    from orchestrator.cluster import jobs
    from orchestrator.cluster.package import package_of

    environment = jobs.read_runtime_env(runtime_env)
    package = package_of(working_dir, _check_job(parse(context.find_root().command, job_command), working_dir))
    client = jobs.connect(address)
    for remark in package.remarks():
        err.print(remark, soft_wrap=True, highlight=False, markup=False)
    job = jobs.submit(client, job_command, package, environment)
    err.print(f"job {job} at {address}", highlight=False)
    if no_wait:
        out.print(job)
        return 0
    return _follow(client, job, address)


def _check_job(job: Context, folder: Path) -> list[str]:
    """Refuse, before anything is uploaded, a command that would fail on the cluster; return the files it names."""
    from orchestrator.config.files import load
    from orchestrator.provenance import as_in_job
    from orchestrator.sweeps import sweep
    from orchestrator.tables import table

    verb, given = job.info_name, job.params
    if verb in ("submit", "job", "init", "ui", "doctor", "schema", "methods"):
        raise ValueError(f"{verb} is not a job; expected a command that computes, such as pretrain, table or ingest")
    with as_in_job():
        if "experiment" in given and verb != "compare":
            load(folder / given["experiment"], given["overrides"])
            return [given["experiment"]]
        if verb == "table":
            table.load(folder / given["table"], given["overrides"], given["cohort"])
            return [given["table"]]
        if verb == "sweep":
            sweep.load(folder / given["sweep"], given["overrides"])
            return [given["sweep"]]
    if verb != "ingest" or given["config"] is None:
        return []
    if not (folder / given["config"]).is_file():
        raise ValueError(f"ingest file {given['config']}: no such file in the working directory {folder}")
    return [given["config"]]


def _follow(client: Any, job: str, address: str) -> int:
    from orchestrator import stop
    from orchestrator.cluster import jobs

    try:
        done = jobs.follow(client, job, _write)
    except KeyboardInterrupt:
        given = f"--address {address} " if address != jobs.DEFAULT_ADDRESS else ""
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


@app.command()
def job(
    action: Annotated[Literal["list", "status", "logs", "stop"], Argument(help="stop saves a checkpoint first")],
    job: Annotated[str | None, Argument(metavar="ID", help="as `raydiology submit` prints it")] = None,
    address: Address = DASHBOARD,
) -> int:
    """List submitted jobs; show a job's status or output; stop it."""
    from orchestrator.cluster import jobs

    if (job is None) != (action == "list"):
        raise ValueError("job list takes no ID, job status, logs and stop take one; `raydiology job list` shows them")
    client = jobs.connect(address)
    if job is None:
        shown = jobs.jobs(client)
    elif action == "logs":
        return _follow(client, job, address)
    elif action == "stop":
        err.print(f"job {job}: asked to save a checkpoint and end", highlight=False)
        shown = [jobs.stop(client, job)]
    else:
        shown = [jobs.find(client, job)]
    table = Table("job", "status", "started", "took", "command")
    table.columns[0].no_wrap = True
    for one in shown:
        table.add_row(one.id, one.status, one.began, one.took, one.command)
    out.print(table)
    return 0
