"""Advice in messages can be followed: the fields, options and commands that a message names exist."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from orchestrator.commands.parser import commands
from orchestrator.config.files import schema
from tests.clusters import ROOT

SCHEMA = schema()
PARTS = "|".join(name for name in SCHEMA["properties"] if name not in ("name", "home", "seed", "base"))
# A field's path, but no part of a longer path, of a file's name or of a package's.
FIELD = re.compile(rf"(?<![\w./-])((?:{PARTS})(?:\.[a-z_]+)+)(?![\w(/])")
OPTION = re.compile(r"(?<=[ (])--[a-z][a-z-]+")
OTHER_PROGRAM = re.compile(r"`(?:ray|mlflow|git) [^`]*`")
COMMAND = re.compile(r"`raydiology ([a-z]+)")


def texts() -> Iterator[tuple[str, str]]:
    """Yield each text of the packages that is no docstring, with its place; ``{}`` stands for what is filled in."""
    for package in ("data", "methods", "orchestrator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    silent |= {id(part) for part in node.values}
                    text = "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)  # pyright: ignore
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
                    text = node.value
                else:
                    continue
                yield f"{path.relative_to(ROOT)}:{node.lineno}", str(text)


@cache
def messages() -> list[tuple[str, str]]:
    """Return the messages: names of files and arguments of other programs are single words, and a page is none."""
    return [(place, text) for place, text in texts() if " " in text and not text.startswith("<!doctype")]


def named(pattern: re.Pattern[str]) -> dict[str, str]:
    """Return what messages name, each with one place where they do."""
    return {name: place for place, text in messages() for name in pattern.findall(OTHER_PROGRAM.sub("", text))}


def alternatives(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a node of the schema may be."""
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rpartition("/")[2]]
    yield node
    for kind in ("anyOf", "oneOf", "allOf"):
        for part in node.get(kind, []):
            yield from alternatives(part)


def is_field(path: str) -> bool:
    nodes = [SCHEMA]
    for part in path.split("."):
        every = [one for node in nodes for one in alternatives(node)]
        if any(one.get("type") == "object" and "properties" not in one for one in every):
            return True  # a mapping whose keys are not known here, as downstream.encoder
        nodes = [one["properties"][part] for one in every if part in one.get("properties", {})]
    return bool(nodes)


@pytest.mark.slow
def test_the_fields_that_messages_name_are_fields_of_an_experiment() -> None:
    found = named(FIELD)
    assert len(found) > 30
    assert {name: place for name, place in found.items() if not is_field(name)} == {}


# Options of the program itself, and of pip.
BESIDE = {"--version", "--help", "--no-deps"}


@pytest.mark.slow
def test_the_options_and_commands_that_messages_name_are_there() -> None:
    known = commands()
    options = {name for command in known.values() for param in command.params for name in param.opts}
    assert len(named(OPTION)) > 10
    unknown = {name: place for name, place in named(OPTION).items() if name not in options | BESIDE}
    assert unknown | {name: place for name, place in named(COMMAND).items() if name not in known} == {}


@pytest.mark.slow
def test_no_message_says_to_leave_scans_or_samples_out_without_saying_by_what() -> None:
    advice = re.compile(
        r"leave (?:the|this|these|those|\{\}) (?:sample|study|studie|file|series|scan|volume)s? out(?! by)"
    )
    assert [place for place, text in messages() if advice.search(text)] == []
