"""Space: the fields that a sweep changes, and how points of it are drawn. Pure: no Ray, no Optuna, no files.

A point is {dotted field: value}, such as {"method.crops.iou": [0.3, 0.6]}. Fields are drawn in the order of the file,
so that a later field may depend on an earlier one (``when``).
"""

from collections.abc import Mapping
from typing import Any

from orchestrator.config.files import expand, merge, places_of
from orchestrator.sweeps.domains import Interval, Knob, Scalar, Suggests, agrees, label

Point = dict[str, Any]
Space = Mapping[str, Knob]


def draw(space: Space, by: Suggests, base: dict[str, Any]) -> Point:
    """Draw a point; ``base`` is the experiment that it changes, as a tree."""
    point: Point = {}
    for field, knob in space.items():
        if _active(knob, point, base):
            point[field] = knob.draw(by, field)
    return point


def grid(space: Space, base: dict[str, Any]) -> list[Point]:
    """List every point, the last field changing fastest; raise ValueError if there are infinitely many."""
    points: list[Point] = [{}]
    for field, knob in space.items():
        points = [
            {**point, **change}
            for point in points
            for change in ([{field: v} for v in _values(field, knob)] if _active(knob, point, base) else [{}])
        ]
    return points


def _values(field: str, knob: Knob) -> list[Any]:
    try:
        return knob.values()
    except ValueError as error:
        raise ValueError(f"space, {field}: {error}") from None


def first(space: Space, base: dict[str, Any]) -> Point:
    """Return the experiment's own values as a point; raise ValueError if one lies outside the space."""
    point: Point = {}
    for field, knob in space.items():
        if not _active(knob, point, base):
            continue
        value = lookup(base, field)
        if not knob.contains(value):
            raise ValueError(
                f"space, {field}: the experiment's own value {value!r} is not among the values of the "
                f"space; widen the space, set {field}=... on the command line, or leave it out with "
                "start_from_experiment: false"
            )
        point[field] = value
    return point


def extremes(space: Space, base: dict[str, Any]) -> list[Point]:
    """List points that take every field to each of its ends while the other fields stay at their first."""
    points = []
    for chosen in space:
        for number in range(len(space[chosen].ends())):
            point: Point = {}
            for field, knob in space.items():
                if field == chosen or _active(knob, point, base):
                    point[field] = knob.ends()[number if field == chosen else 0]
            if _active(space[chosen], {f: v for f, v in point.items() if f != chosen}, base):
                points.append(point)
    return points


def params(space: Space, point: Point) -> dict[str, Scalar]:
    """Return the plain numbers and words that a point is drawn from."""
    return {
        name: scalar for field, value in point.items() for name, scalar in space[field].params(field, value).items()
    }


def describe(space: Space, point: Point) -> str:
    """Name a point for people, by the shortest names that tell its fields apart: ``iou 0.3-0.6, lr 0.001``."""
    return ", ".join(f"{_short(field, list(space))} {_shown(space[field], value)}" for field, value in point.items())


def lookup(tree: dict[str, Any], field: str) -> Any:
    """Return a dotted field's value, or None if the field is missing."""
    value: Any = tree
    for part in field.split("."):
        if isinstance(value, list):
            value = dict(enumerate(value)).get(places_of(value).get(part, -1))
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _active(knob: Knob, point: Point, base: dict[str, Any]) -> bool:
    if not knob.when:
        return True
    tree = merge(base, expand(point))
    return all(
        any(agrees(one, lookup(tree, field)) for one in (wanted if isinstance(wanted, list) else [wanted]))
        for field, wanted in knob.when.items()
    )


def _short(field: str, fields: list[str]) -> str:
    parts = field.split(".")
    tails = [".".join(parts[at:]) for at in reversed(range(len(parts)))]
    return next((t for t in tails if sum(f == t or f.endswith(f".{t}") for f in fields) == 1), field)


def _shown(knob: Knob, value: Any) -> str:
    if isinstance(knob, Interval):
        return f"{value[0]:.4g}-{value[1]:.4g}"
    if isinstance(value, list | tuple) and not any(isinstance(part, list | dict) for part in value):
        return " x ".join(str(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(label(value))
