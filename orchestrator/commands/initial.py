"""The command that writes a first experiment: init."""

import argparse
import shlex

from orchestrator.commands.console import Commands, add_command, out, say_next


def add(commands: Commands) -> None:
    """Add this command."""
    parser = add_command(commands, "init", "write a first experiment that fits shards and machine", _init)
    parser.add_argument("shards", help="folder of the shards to pretrain on, or s3://bucket/folder")
    parser.add_argument("--labelled", metavar="SHARDS", help="labelled shards to fine-tune on (default: the same)")
    parser.add_argument("--out", metavar="FILE", help="file.yaml, or a folder (default: here, named as the shards)")


def _init(arguments: argparse.Namespace) -> None:
    from orchestrator import initial
    from orchestrator.fingerprint import Machine

    files = initial.write(arguments.shards, arguments.labelled, arguments.out, Machine.here())
    for path in files:
        out.print(f"written: {path}", soft_wrap=True, highlight=False, markup=False)
    command = f"raydiology {'table' if len(files) > 1 else 'pretrain'} {shlex.quote(str(files[-1]))}"
    say_next(f"{command} --dry-run")
    say_next(command, "then")
