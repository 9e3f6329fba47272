"""The parser of `raydiology` and of its commands."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version

from data.spelling import did_you_mean
from orchestrator.commands import initial, jobs, machine, results, scans, training
from orchestrator.commands.console import Command, Parser, UsageError, read
from orchestrator.terminal.console import NAME


def parse(words: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Return the command that a command line names, and its arguments; raise UsageError for a mistake.

    Everything after ``--`` is the command of a job, whose own arguments become ``job``.
    """
    parser, known = _parsers()
    if not words or words[0].startswith("-"):
        parser.parse_args(words)
        raise UsageError(f"no command is given; expected one of {', '.join(known)}")
    name, *rest = words
    if name not in known:
        near = did_you_mean(name, known)
        raise UsageError(f"there is no command {name!r}{near}; expected one of {', '.join(known)}")
    command = known[name]
    own, job = (rest[: rest.index("--")], rest[rest.index("--") + 1 :]) if "--" in rest else (rest, None)
    if job is not None and not command.takes_job:
        raise UsageError("-- comes before the command of a job, in `raydiology submit`; leave it out")
    arguments = read(command, own)
    if job is not None:
        arguments.job_command = [*arguments.job_command, *job]
    if command.takes_job:
        arguments.job = parse(arguments.job_command)[1]
    return command, arguments


def commands() -> dict[str, Command]:
    """Return the parsers of all commands by their names."""
    return _parsers()[1]


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    """Return the parser of `raydiology` itself, and those of its commands."""
    parser = Parser(prog=NAME, description="Pretrain on medical images, and find out which pretraining was worth it.")
    parser.add_argument("--version", action="version", version=f"{NAME} {version('raydiology')}")
    added = parser.add_subparsers(metavar="COMMAND", parser_class=Command)
    for group in (scans, initial, training, results, jobs, machine):
        group.add(added)
    return parser, dict(added.choices)
