"""YAML as a person would write it: comments broken into lines, values in the short form."""

import re
from typing import Any

import yaml

WIDTH = 116


def comment(text: str, indent: int = 0) -> str:
    """Return a comment, broken into lines; later lines are indented to the text after ``Name:``."""
    hang = re.match(r"\w+: +", text)
    later = " " * len(hang.group()) if hang else ""
    lines, line = [], ""
    for word in re.findall(r"\S+\s*", text):
        if line and len(f"{line}{word.rstrip()}") > WIDTH - indent:
            lines.append(line.rstrip())
            line = later
        line += word
    lines.append(line.rstrip())
    return "".join(f"{' ' * indent}# {each}\n" for each in lines)


def flow(value: Any) -> str:
    """Write a value in YAML's short form, on one line."""
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()


def scalar(text: str) -> str:
    """Write a text as YAML reads it back."""
    return yaml.safe_dump(text, width=10_000).removesuffix("\n...\n").strip()


def sentence(reason: str) -> str:
    """Write a reason as a sentence."""
    return f"{reason[0].upper()}{reason[1:]}."


def named(number: int, name: str) -> str:
    """Write a class: its number, and its name if that says more."""
    return str(number) if name == str(number) else f"{number} {one_line(name)}"


def one_line(name: str) -> str:
    """Write a name without line breaks."""
    return " ".join(name.split())
