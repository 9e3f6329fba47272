"""The command line.

Exit codes: 0 done, 1 a run failed, 2 the request cannot work as given; after a signal, 128 plus its number: 130 for
Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

Commands import what they need when they run, so that `raydiology methods` does not wait for Ray.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from data.spelling import did_you_mean
from orchestrator import stop
from orchestrator.commands import initial, jobs, machine, results, scans, training
from orchestrator.commands.console import FAILED, REFUSED, Command, Parser, UsageError, err, read
from orchestrator.failure import RunError
from orchestrator.refusal import prefixed
from orchestrator.terminal import NAME


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; turn an error into a readable message and an exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    subject = words[0] if words and words[0] in commands() else NAME
    stop.withdraw()
    try:
        with stop.heard():
            command, arguments = parse(words)
            return command.run(arguments) or 0
    except (ValueError, FileNotFoundError) as error:
        return _failed(subject, error, REFUSED)
    except (RunError, OSError) as error:
        return _failed(subject, error, FAILED)
    except stop.StoppedError as error:
        return _failed(subject, error, stop.exit_code())
    except KeyboardInterrupt:
        said = f"{subject}: interrupted; the same command goes on from what was saved last"
        err.print(said, highlight=False, markup=False, soft_wrap=True)
        return stop.exit_code()


def _failed(subject: str, error: Exception, code: int) -> int:
    err.print(prefixed(subject, str(error)), style="red", highlight=False, markup=False, soft_wrap=True)
    return code


def parse(words: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Return the command that a command line names, and its arguments; raise UsageError for a mistake.

    Everything after ``--`` is the command of a job.
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


if __name__ == "__main__":
    sys.exit(main())
