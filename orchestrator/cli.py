"""The command line.

Exit codes: 0 done, 1 a run failed, 2 the request cannot work as given; after a signal, 128 plus its number: 130 for
Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

Commands import what they need when they run, so that `raydiology methods` does not wait for Ray.
"""

import os
import sys
from collections.abc import Sequence

from orchestrator import stop
from orchestrator.commands.console import FAILED, REFUSED, err
from orchestrator.commands.parser import commands, parse, program
from orchestrator.config.refusal import prefixed
from orchestrator.stop import RunError
from orchestrator.terminal.console import NAME

# By this variable a shell asks for what can complete a command line.
COMPLETION = "_RAYDIOLOGY_COMPLETE"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; turn an error into a readable message and an exit code."""
    if os.environ.get(COMPLETION):
        os.environ["TERMINAL_WIDTH"] = "9999"  # a shell takes each line for a word: explanations must not be wrapped
        program().main(prog_name=NAME, complete_var=COMPLETION)
    words = list(sys.argv[1:] if argv is None else argv)
    subject = words[0] if words and words[0] in commands() else NAME
    stop.withdraw()
    try:
        with stop.heard():
            context = parse(words)
            return context.command.invoke(context) or 0
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


if __name__ == "__main__":
    sys.exit(main())
