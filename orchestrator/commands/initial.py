"""The command that writes a first experiment: init."""

import shlex
from typing import Annotated

from typer import Argument, Option

from orchestrator.commands.console import loading, out, say_next
from orchestrator.commands.usage import Commands

app = Commands()


@app.command()
def init(
    shards: Annotated[str, Argument(help="folder of the shards to pretrain on, or s3://bucket/folder")],
    labelled: Annotated[
        str | None, Option(metavar="SHARDS", help="labelled shards to fine-tune on (default: the same)")
    ] = None,
    target: Annotated[
        str | None,
        Option("--out", metavar="FILE", help="file.yaml, or a folder (default: here, named as the shards)"),
    ] = None,
) -> None:
    """Write a first experiment that fits shards and machine."""
    with loading():
        from orchestrator.proposal import files as initial
        from orchestrator.proposal.fingerprint import Machine

    files = initial.write(shards, labelled, target, Machine.here())
    for path in files:
        out.print(f"written: {path}", soft_wrap=True, highlight=False, markup=False)
    experiment, last = (shlex.quote(str(path)) for path in (files[0], files[-1]))
    judged = len(files) > 1
    say_next(f"raydiology {'finetune' if judged else 'pretrain'} {experiment} --dry-run")
    say_next(f"raydiology {'table' if judged else 'pretrain'} {last}", "then")
