"""The page of commands: what `raydiology COMMAND --help` says, read from the commands themselves."""

import inspect
import re
from typing import Any

from orchestrator.commands.parser import commands, program


def pages() -> dict[str, str]:
    """Return the page of all commands."""
    sections = [_section(name, command) for name, command in commands().items()]
    return {"commands": f"# Commands\n\n{inspect.cleandoc(program().help or '')}\n\n" + "\n".join(sections)}


def _section(name: str, command: Any) -> str:
    prose, _, examples = inspect.cleandoc(command.help or "").partition("\b")
    text = f"## {name}\n\n{_escaped(prose)}\n\n"
    if epilog := (examples or command.epilog or "").replace("\b", "").strip():
        text += f"```text\n{inspect.cleandoc(epilog)}\n```\n\n"
    rows = [f"| {_called(one)} | {_default(one)} | {_cell(one)} |" for one in command.params if one.name != "help"]
    if not rows:
        return text
    return text + "\n".join(["| argument or option | default | what it does |", "|---|---|---|", *rows]) + "\n"


def _called(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar or param.name.upper()}`"
    return ", ".join(f"`{one}`" for one in param.opts)


def _default(param: Any) -> str:
    if param.required:
        return "required"
    value = param.default
    plain = (
        value not in (None, "", (), []) and value is not False and not callable(value) and "UNSET" not in repr(value)
    )
    return f"`{value}`" if plain else ""


def _cell(param: Any) -> str:
    choices = getattr(getattr(param, "type_descriptor", None), "choices", None)
    told = f" ({', '.join(f'`{one}`' for one in choices)})" if choices else ""
    return f"{_escaped(getattr(param, 'help', None) or '')}{told}".replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"([*<>_\[\]])(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"\\\1", text)
