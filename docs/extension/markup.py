"""Docstrings as this project writes them, for Sphinx: plain words, ``code``, and aligned lists of names and texts."""

import inspect
import re
from collections.abc import Sequence

_TERM = re.compile(r"^((?:[\w.]+, )*[\w.]+(?:=\w+)?:?|\S+:) {2,}(\S.*)$")
_HEADING = re.compile(r"^(Paper|Reference|Variants|Shapes|Raises|Returns|Differs):\s*(.*)$")
_LISTS = ("Variants", "Differs")
_CODE = re.compile(r"(``.+?``)")


def terms(docstring: str) -> dict[str, str]:
    """Return what a docstring's aligned lists say of each name; names that share a line share its text.

    Of a list with several columns, as VoCo's of its variants, a name is only said to be in it.
    """
    found: dict[str, str] = {}
    current: list[str] = []
    margin = 0
    for line in inspect.cleandoc(docstring or "").splitlines():
        words, indent = line.strip(), len(line) - len(line.lstrip())
        if (start := _TERM.match(words)) and (not current or indent <= margin or current[0] in _LISTS):
            current, margin = start[1].rstrip(":").split(", "), indent
            found |= dict.fromkeys(current, "see the variants above" if "  " in start[2] else start[2])
        elif current and indent > margin:
            found |= {name: f"{found[name]} {words}" for name in current if found[name] != "see the variants above"}
        else:
            current = []
    return found


def restructured(lines: Sequence[str]) -> list[str]:
    """Return a docstring as reStructuredText.

    A list of names becomes definitions; a list within a definition, whose columns have a meaning, stays as it is
    typed; all else stays as it reads.
    """
    text: list[str] = []
    inside = literal = False
    for line in lines:
        start = _TERM.match(line) or _HEADING.match(line)
        if start:
            text += ["", f"**{_escaped(start[1].rstrip(':'))}**", f"   {_escaped(start[2]) or chr(92) + ' '}"]
            inside, literal = True, False
        elif inside and line.startswith(" "):
            if not literal and "  " in line.strip():
                text += ["", "   ::", ""]
                literal = True
            text.append(f"   {line}" if literal else f"   {_escaped(line.strip())}")
        else:
            text += ["", _escaped(line.strip())] if inside else [_escaped(line.strip())]
            inside = literal = False
    return [*text, ""]


def _escaped(text: str) -> str:
    """Escape what reStructuredText would take for markup, outside of code."""
    parts = _CODE.split(text)
    return "".join(part if _CODE.fullmatch(part) else re.sub(r"([*`|\\]|_\b)", r"\\\1", part) for part in parts)
