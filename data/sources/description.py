"""Description: what a dataset.json says of nnU-Net's and the Decathlon's folders: channels, labels and pairs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data.files import is_file, join, read_bytes, shown
from data.sources.study import stem_of

DESCRIPTION = "dataset.json"
_LISTS = ("training", "validation", "test")


@dataclass(frozen=True)
class Description:
    """A dataset.json.

    ``channels`` are the names of the channels in order. ``labels`` are the names of label ids except the background.
    ``pairs`` maps each image that is listed, by its path from the folder on, to the path of its label or None.
    """

    channels: tuple[str, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    pairs: dict[str, str | None] = field(default_factory=dict)


def read_description(source: str, folders: tuple[str, ...]) -> Description:
    """Read the dataset.json of a source, or say nothing where it has none; ``folders`` hold images or labels.

    Raises ValueError, which names the file, for what is no JSON or has another form.
    """
    uri = join(source, DESCRIPTION)
    if not is_file(uri):
        return Description()
    try:
        tree = json.loads(read_bytes(uri))
    except json.JSONDecodeError as error:
        comma = error.doc[: error.pos].rstrip(" \t\r\n}]").endswith(",")
        raise _refusal(
            source,
            f"not JSON (line {error.lineno}, column {error.colno}: {error.msg})",
            "JSON, such as nnU-Net writes",
            "correct it there" + (": JSON has no comma before a closing bracket" if comma else ""),
        ) from None
    except UnicodeDecodeError:
        raise _refusal(source, "not JSON in UTF-8", "JSON, such as nnU-Net writes", "save it as UTF-8") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets of thousands of levels
        raise _refusal(source, "no such JSON", "JSON, such as nnU-Net writes", "write it again") from None
    if not isinstance(tree, dict):
        raise _refusal(source, f"a {type(tree).__name__}", "a mapping", "write {...} around its fields")
    return Description(_channels(tree, source), _labels(tree, source), dict(_pairs(tree, folders)))


def _refusal(source: str, found: str, expected: str, remedy: str) -> ValueError:
    return ValueError(f"source {shown(source)}: dataset.json: {found}; expected {expected}; {remedy}")


def _channels(tree: dict[str, Any], source: str) -> tuple[str, ...]:
    """Return the names of the channels: from ``{"0": "CT"}``, ``{"CT": 0}``, ``["CT"]`` or ``"CT"``."""
    name = "channel_names" if tree.get("channel_names") else "modality"
    given = tree.get(name) or []
    if isinstance(given, dict):
        pairs = list[tuple[Any, Any]](given.items())
        if not all(_is_number(key) for key in given):
            pairs = [(value, key) for key, value in pairs]
        if not all(_is_number(number) for number, _ in pairs):
            raise _refusal(
                source,
                f"{len(given)} {name} without a number for each",
                'such as {"0": "CT"}',
                "number the channels from 0",
            )
        given = [text for _, text in sorted(pairs, key=lambda pair: int(pair[0]))]
    return (given,) if isinstance(given, str) else tuple(map(str, given))


def _labels(tree: dict[str, Any], source: str) -> dict[int, str]:
    """Return the names of label ids, from ``{"1": "liver"}``, ``{"liver": 1}`` or a list; unions of ids have none."""
    given = tree.get("labels") or {}
    if isinstance(given, list):
        given = {str(number): name for number, name in enumerate(given)}
    if not isinstance(given, dict):
        raise _refusal(source, f"labels that are a {type(given).__name__}", "a mapping", "write them as a mapping")
    named = [(key, value) if _is_number(key) else (value, key) for key, value in given.items()]
    ids = {int(number): str(name) for number, name in named if _is_number(number)}
    return {number: ids[number] for number in sorted(ids) if number}


def _is_number(value: object) -> bool:
    return isinstance(value, int | str) and str(value).isascii() and str(value).isdigit()


def _pairs(tree: dict[str, Any], folders: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    for name in _LISTS:
        entries = tree.get(name)
        for entry in entries if isinstance(entries, list) else ():
            paths = entry if isinstance(entry, dict) else {"image": entry}
            label = next(_places(paths.get("label"), folders), None)
            for image in _places(paths.get("image"), folders):
                folder, _, rest = image.rpartition("/")
                yield f"{folder}/{stem_of(rest)}", label


def _places(given: object, folders: tuple[str, ...]) -> Iterator[str]:
    """Yield paths from the folder of images or labels on: a list may have been written on another machine."""
    for path in given if isinstance(given, list) else [given]:
        if isinstance(path, str) and path:
            parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
            known = [place for place, part in enumerate(parts[:-1]) if part in folders]
            yield "/".join(parts[known[-1] if known else 0 :])
