"""Choice: fields whose values are listed, every value tried in every repeat. Pure: nothing is run or read here.

Under ``choose`` the value with the best mean on the validation split makes the row's numbers; under ``repeat_over``
each value's runs are repeats of their own.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from pydantic import AfterValidator

from orchestrator.direction import best_first, direction_of
from orchestrator.results.text import shortened

Settings = dict[str, Any]
"""A value for each of some fields, by dotted names."""
# What the table sets in every trial, after all other changes.
SET_BY_TABLE = ("seed", "downstream.seed", "downstream.num_folds", "downstream.fold")


def _told_apart(lists: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Return the lists; raise ValueError for one that is empty or has a value twice, and for fields in each other."""
    for place, (field, values) in enumerate(lists.items()):
        if not values:
            raise ValueError(f"{field}: 0 values; give two or more, or leave the field out")
        if field in SET_BY_TABLE:
            raise ValueError(
                f"{field}: the table sets it in every trial; use pretrain_seeds, finetune_seeds or num_folds instead"
            )
        if twice := [value for number, value in enumerate(values) if value in values[:number]]:
            raise ValueError(
                f"{field}: {json.dumps(twice[0])} is there twice in {json.dumps(values)}; give each value once"
            )
        if shared := [other for other in list(lists)[:place] if _overlap(field, other)]:
            raise ValueError(f"{field}: it is a part of {shared[0]}, or holds it; list one of the two")
    return lists


Lists = Annotated[dict[str, tuple[Any, ...]], AfterValidator(_told_apart)]
"""The values of each of some fields, by dotted names; several fields mean their product."""


@dataclass(frozen=True)
class Contender:
    """One of a choice's values: the mean validation score over the repeats that are complete, None without any."""

    settings: Settings
    mean: float | None
    num_complete: int
    num_repeats: int

    @property
    def is_complete(self) -> bool:
        return self.num_complete == self.num_repeats


@dataclass(frozen=True)
class TableChoice:
    """A row's choice: the values in the order of their lists, the one that was chosen (None: nothing ran yet).

    metric        the metric of the validation that decided, in its own direction
    validated_on  what the runs were validated on
    """

    tried: tuple[Contender, ...]
    chosen: Contender | None
    metric: str
    validated_on: str

    @property
    def settings(self) -> Settings | None:
        return self.chosen.settings if self.chosen else None

    def remark(self, decimals: int) -> str:
        """Say what was chosen, and how each value scored."""
        if self.chosen is None:
            return "nothing is chosen yet: no value has a complete repeat"
        scores = [f"{shortly(one.settings)}: {_scored(one, decimals)}" for one in self.tried]
        by = f"{self.metric} on {self.validated_on}"
        partly = "" if self.chosen.is_complete else ", though no value has all of its repeats"
        return f"{worded(self.chosen.settings)} is chosen by {by}{partly} ({'; '.join(scores)})"


def choose(tried: Sequence[Contender], metric: str, validated_on: str) -> TableChoice:
    """Choose the value with the best mean, the first of equals; incomplete ones only where no value is complete."""
    direction = direction_of(metric)
    assert direction is not None, "held by refuse_choice"
    scored = [one for one in tried if one.mean is not None]
    candidates = [one for one in scored if one.is_complete] or scored
    places = best_first([one.mean for one in candidates], direction)
    return TableChoice(tuple(tried), candidates[places[0]] if places else None, metric, validated_on)


def settings_of(lists: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Return every combination of the values, the last field's changing fastest; no fields give one without any."""
    return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]


def worded(settings: Settings) -> str:
    """Write settings as they are written on a command line."""
    return ", ".join(f"{field}={_written(value)}" for field, value in settings.items())


def shortly(settings: Settings) -> str:
    """Write settings with the shortest names that tell the fields apart."""
    return ", ".join(f"{shortened(field, list(settings))} {_written(value)}" for field, value in settings.items())


def listed(lists: Mapping[str, Sequence[Any]]) -> str:
    """Write fields and their values for people."""
    return " and ".join(
        f"{field} over {', '.join(_written(value) for value in values)}" for field, values in lists.items()
    )


def placed_lists(lists: Mapping[str, Sequence[Any]], place: Callable[[str], str]) -> dict[str, tuple[Any, ...]]:
    """Return the lists with other shards in place of those that they name."""
    return {
        field: tuple(map(place, values)) if field.endswith(".shards") else tuple(values)
        for field, values in lists.items()
    }


def refuse_overridden(name: str, lists: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raise ValueError where changes of a row set one of the listed fields; ``name`` is that of the lists."""
    for field in lists:
        if own := next((one for one in _leaves(overrides) if _overlap(one, field)), None):
            raise ValueError(
                f"{name}.{field}: the row overrides {own} itself; remove that, or give the row its own {name}, "
                f"such as {name}: {{}}"
            )


def refuse_shared(choose: Mapping[str, Any], repeat_over: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that is both chosen and repeated over."""
    for field in choose:
        if other := next((one for one in repeat_over if _overlap(one, field)), None):
            raise ValueError(f"choose.{field} beside repeat_over.{other}: list it under one of the two")


def refuse_choice(metric: str) -> None:
    """Raise ValueError where neither high nor low values of a metric are better, so that none can be chosen."""
    if direction_of(metric) is None:
        raise ValueError(
            f"choose: it is unknown whether higher or lower values of metric {metric!r} are better; name another one"
        )


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the dotted names of all fields that changes set."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name


def _overlap(one: str, other: str) -> bool:
    """Tell whether two dotted names are the same field, or one is a part of the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _scored(one: Contender, decimals: int) -> str:
    if one.mean is None:
        return f"no score, 0 of {one.num_repeats} repeats"
    return f"{one.mean:.{decimals}f}" + (
        "" if one.is_complete else f" over {one.num_complete} of {one.num_repeats} repeats"
    )
