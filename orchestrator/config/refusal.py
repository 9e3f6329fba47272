"""Refusal: explain a mistake in a config by field, value, expectation, and the nearest known name.

Pydantic's own errors name the members of unions (``encoder.unet.features``) as if they were fields. Here, places are
named as in the file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from data.spelling import did_you_mean

M = TypeVar("M", bound=BaseModel)
Place = tuple[str | int, ...]


class ConfigError(ValueError):
    """A config that cannot be read; the message names file, field, value and remedy."""


# The name of an experiment, a stage, a table or a sweep, which names a folder too.
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def validated(kind: type[M], tree: Any, source: str) -> M:
    """Validate a tree that was read from ``source`` as a kind of config; raise ConfigError for mistakes."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, tree, source)) from None


def explain(error: ValidationError, kind: type[BaseModel], tree: Any, source: str) -> str:
    """Explain a validation error, one line per place."""
    found: dict[Place, list[ErrorDetails]] = {}
    for item in error.errors():
        found.setdefault(_place(item, kind, tree), []).append(item)
    lines = [_line(place, items, _kinds_at(kind, place[:-1], tree)) for place, items in found.items()]
    return "\n  ".join([f"{source}:", *(line.replace("\n", "\n  ") for line in lines)])


def prefixed(subject: str, text: str) -> str:
    """Put a subject before a text, unless the text begins with it."""
    return text if re.match(rf"{re.escape(subject)}[: ]", text) else f"{subject}: {text}"


def _place(item: ErrorDetails, kind: type[BaseModel], tree: Any) -> Place:
    """Return the place of an error without the members of unions, which no file names."""
    place, last = _written(item["loc"], tree), item["loc"][-1:]
    # A field that the file leaves out: missing, or a default that cannot be.
    if last != place[-1:] and any(last[0] in one.model_fields for one in _kinds_at(kind, place, tree)):
        return (*place, *last)
    return place


def _written(place: Place, tree: Any) -> Place:
    """Return the parts of a place that the tree has; prefer a path through the tree that ends at the right field."""
    if not place:
        return ()
    first, rest = place[0], place[1:]
    ways: list[Place] = [_written(rest, tree)]
    if first in _parts(tree):
        ways.insert(0, (first, *_written(rest, tree[first])))
    return max(ways, key=lambda way: (len(way), way[-1:] == place[-1:]))


def _parts(tree: Any) -> Iterable[Any]:
    if isinstance(tree, list | tuple):
        return range(len(tree))
    return tree if isinstance(tree, Mapping) else ()


def _line(place: Place, items: Sequence[ErrorDetails], kinds: Sequence[type[BaseModel]]) -> str:
    item, where = items[0], ".".join(map(str, place))
    context = item.get("ctx", {})
    if item["type"] == "extra_forbidden":
        known = sorted({name for kind in kinds for name in kind.model_fields})
        near = did_you_mean(str(place[-1]), known) or f"; expected one of {', '.join(known)}"
        return f"{where}: no such field{near}"
    if item["type"] == "missing":
        return f"{where}: missing; it has no default"
    if item["type"] == "union_tag_not_found":
        return f"{where}.name: missing; expected the name of one, see `raydiology methods`"
    if item["type"] == "union_tag_invalid":
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        given = context["tag"]
        return f"{where}.name: there is no {given!r}{did_you_mean(given, known)}; expected one of {', '.join(known)}"
    if item["type"] == "value_error":
        return _under(place, str(context["error"]))
    if item["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return prefixed(where, f"expected a mapping of fields, found {item['input']!r}").removeprefix(": ")
    expected = " or ".join(dict.fromkeys(_expectation(item) for item in items)).replace(" or expected", " or")
    near = did_you_mean(str(item["input"]), re.findall(r"'([^']*)'", context.get("expected", "")))
    return f"{where}: {expected}, found {item['input']!r}{near}"


def _expectation(item: ErrorDetails) -> str:
    if item["type"] == "string_pattern_mismatch":
        return "expected letters, digits, '.', '_' and '-', a letter or digit first"
    if item["type"] in ("too_short", "too_long"):
        side, limit = ("least", "min_length") if item["type"] == "too_short" else ("most", "max_length")
        bound = item.get("ctx", {})[limit]
        return f"expected at {side} {bound} {'item' if bound == 1 else 'items'}"
    text = item["msg"].partition(", unable to parse")[0].replace("a valid tuple", "a list")
    return re.sub(r"^Input should be (?=greater|less)", "expected a number ", text).replace(
        "Input should be", "expected"
    )


def _under(place: Place, text: str) -> str:
    """Put a place before a text that may begin with the place's last name."""
    if not place:
        return text
    *above, last = map(str, place)
    return ".".join([*above, prefixed(last, text)])


def _kinds_at(kind: type[BaseModel], place: Place, tree: Any) -> list[type[BaseModel]]:
    """Return the kinds of config that a place may hold, by its ``name`` if there are several."""
    kinds: list[type[BaseModel]] = [kind]
    here: Any = tree
    for part in place:
        fields = [one.model_fields[part] for one in kinds if isinstance(part, str) and part in one.model_fields]
        if fields:
            kinds = [found for field in fields for found in _kinds_in(field.annotation)]
        here = here[part] if part in _parts(here) else None
        named = [one for one in kinds if isinstance(here, Mapping) and _name(one) == here.get("name", object)]
        kinds = named or kinds
    return kinds


def _name(kind: type[BaseModel]) -> Any:
    return kind.model_fields["name"].default if "name" in kind.model_fields else None


def _kinds_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _kinds_in(part)
