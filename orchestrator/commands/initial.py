"""The command that writes a first experiment: init."""

import argparse
import shlex

from orchestrator.commands.console import Commands, add_command, loading, out, say_next


def add(commands: Commands) -> None:
    """Add this command."""
    parser = add_command(commands, "init", "write a first experiment that fits shards and machine", _init)
    parser.add_argument("shards", help="folder of the shards to pretrain on, or s3://bucket/folder")
    parser.add_argument("--labelled", metavar="SHARDS", help="labelled shards to fine-tune on (default: the same)")
    parser.add_argument("--out", metavar="FILE", help="file.yaml, or a folder (default: here, named as the shards)")


def _init(arguments: argparse.Namespace) -> None:
    with loading():
        from orchestrator.proposal import files as initial
        from orchestrator.proposal.fingerprint import Machine

    files = initial.write(arguments.shards, arguments.labelled, arguments.out, Machine.here())
    for path in files:
        out.print(f"written: {path}", soft_wrap=True, highlight=False, markup=False)
    experiment, last = (shlex.quote(str(path)) for path in (files[0], files[-1]))
    judged = len(files) > 1
    say_next(f"raydiology {'finetune' if judged else 'pretrain'} {experiment} --dry-run")
    say_next(f"raydiology {'table' if judged else 'pretrain'} {last}", "then")
