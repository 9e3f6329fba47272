"""The command line.

Exit codes: 0 done, 1 a run failed, 2 the request cannot work as given, 130 interrupted, 143 stopped as asked.

Commands import what they need when they run: `raydiology methods` should not wait for Ray.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from orchestrator.commands import jobs, machine, results, scans, training
from orchestrator.commands.console import FAILED, INTERRUPTED, REFUSED, STOPPED, err
from orchestrator.failure import RunError
from orchestrator.stop import StoppedError
from orchestrator.terminal import NAME, as_called


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; turn what can go wrong into a message in words and an exit code."""
    arguments = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int | None] = arguments.run
    try:
        return run(arguments) or 0
    except (ValueError, FileNotFoundError) as error:
        return _failed(arguments.command, error, REFUSED)
    except RunError as error:
        return _failed(arguments.command, error, FAILED)
    except StoppedError as error:
        return _failed(arguments.command, error, STOPPED)
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED


def _failed(command: str, error: Exception, code: int) -> int:
    err.print(f"{command}: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
    return code


class Parser(argparse.ArgumentParser):
    """A parser whose help and errors name commands as this process was called."""

    def format_help(self) -> str:
        return as_called(super().format_help())

    def format_usage(self) -> str:
        return as_called(super().format_usage())


def build_parser() -> argparse.ArgumentParser:
    """Return what reads a command line; its ``run`` is the command."""
    parser = Parser(prog=NAME, description="Pretrain on medical images, and find out which pretraining was worth it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (scans, training, results, jobs, machine):
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
