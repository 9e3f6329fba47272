"""How commands are declared, and how the words of a command line are read and refused."""

from collections.abc import Sequence
from typing import Any, get_args

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup, TyperOption

from data.spelling import did_you_mean
from orchestrator.terminal.console import NAME, as_called


class UsageError(ValueError):
    """A command line that cannot be read; the message says what was expected."""


class Command(TyperCommand):
    """A command whose help names commands as this process was called."""

    context_class = typer.Context

    def get_help(self, ctx: Any) -> str:
        return as_called(super().get_help(ctx))


class Program(TyperGroup):
    """All commands."""

    context_class = typer.Context


class Commands(typer.Typer):
    """Commands on one subject."""

    def command(self, name: str | None = None, **options: Any) -> Any:
        """Make a function a command: its docstring is the help, what it returns the exit code, or None for 0."""
        return super().command(name, cls=Command, **options)


def parse(program: Any, words: Sequence[str]) -> typer.Context:
    """Return the context of the command that a command line names, with its arguments as ``params``.

    Raise UsageError for a mistake.
    """
    known = ", ".join(program.commands)
    name, *rest = words or [""]
    root = _read(program, NAME, list(words) if name.startswith("-") else [])
    if not name or name.startswith("-"):
        raise UsageError(f"no command is given; expected one of {known}")
    if name not in program.commands:
        raise UsageError(
            f"there is no command {name!r}{did_you_mean(name, program.commands)}; expected one of {known}"
        )
    if "--" in rest and name != "submit":
        raise UsageError("-- comes before the command of a job, in `raydiology submit`; leave it out")
    return _read(program.commands[name], name, rest, root)


def _read(command: Any, name: str, words: list[str], parent: typer.Context | None = None) -> typer.Context:
    """Parse the words after a command's name; options may be anywhere."""
    try:
        context = command.make_context(name, _spread(command, words), parent=parent, allow_extra_args=True)
        if not context.args:
            return context
        mistake = f"no further argument {context.args[0]}"
    except typer.Exit as ended:
        raise SystemExit(ended.exit_code) from None
    except typer.TyperException as error:
        mistake = _mistake(command, words, error)
    except UsageError as error:
        mistake = str(error)
    called = f"{NAME} {name}" if parent else NAME
    raise UsageError(f"{mistake}; `{called} --help` shows what can be given")


def _options(command: Any) -> dict[str, TyperOption]:
    """Return the options of a command by their names."""
    return {name: option for option in command.params if isinstance(option, TyperOption) for name in option.opts}


def _spread(command: Any, words: list[str]) -> list[str]:
    """Repeat an option before each of its words, as typer reads it: ``--by A B`` becomes ``--by A --by B``."""
    options = _options(command)
    spread: list[str] = []
    several = None
    for place, word in enumerate(words):
        before = spread[-1] if spread else ""
        if word == "--":
            return [*spread, *words[place:]]
        if word in options and before in options and not options[before].is_flag:
            raise UsageError(f"argument {before}: expected a value before {word}")
        if word.startswith("-"):
            several = word if word in options and (options[word].metavar or "").endswith("...") else None
        elif several and before != several:
            spread.append(several)
        spread.append(word)
    return spread


def _mistake(command: Any, words: list[str], error: typer.TyperException) -> str:
    """Say what is wrong with the words after a command's name."""
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):
        option = next(word for word in words if word.startswith(option)).partition("=")[0]
        return f"no option {option}{did_you_mean(option, _options(command))}"
    param = getattr(error, "param", None)
    if param is None:
        return error.format_message().rstrip(".")
    if not isinstance(error.__cause__, ValidationError):
        given = command.make_context(None, list(words), resilient_parsing=True).params
        missing = [one.opts[0] for one in command.params if one.required and not given[one.name]]
        return f"the following arguments are required: {', '.join(missing)}" if missing else error.format_message()
    value, choices = error.__cause__.errors()[0]["input"], param.type_descriptor.choices
    if choices:
        near = did_you_mean(value, choices)
        return f"argument {param.opts[0]}: there is no {value!r}{near}; expected one of {', '.join(choices)}"
    kind, *_ = get_args(param.type_descriptor.annotation) or [param.type_descriptor.annotation]
    return f"argument {param.opts[0]}: invalid {kind.__name__} value: {value!r}"
