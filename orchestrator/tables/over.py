"""Over: which rows of a table differ in one field of numbers alone, to be drawn as a line over that field."""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from data.spelling import did_you_mean
from orchestrator.config.experiment import Experiment
from orchestrator.config.refusal import ConfigError
from orchestrator.tables.trials import TableTrial

Lines = dict[str, dict[float, str]]
"""The rows of each line by their values of the field, which ascend."""

SEEDS: dict[str, Any] = {"seed": True, "downstream": {"seed"}}


def lines_over(source: str, field: str, experiments: Sequence[tuple[TableTrial, Experiment]]) -> Lines:
    """Group the rows of a table whose experiments differ in the given field, and in seeds, alone.

    A line is called by the words, apart by commas, with which the names of all its rows begin: ``Scratch`` where they
    are ``Scratch, 20 %`` and ``Scratch, 40 %``; where another line has that name, by its first row. Rows that are the
    same run, as on a cohort of fewer scans, stand in lines of their own. Raises ConfigError, which names the table's
    file ``source``, where a row has no number in the field.
    """
    grouped: dict[tuple[str, int], dict[float, str]] = {}
    firsts: dict[str, Experiment] = {}
    for trial, experiment in experiments:
        firsts.setdefault(trial.row, experiment)
    for row, experiment in firsts.items():
        rest = experiment.model_dump(mode="json", exclude=SEEDS)
        value = _taken(rest, field, f"{source}, row {row}")
        key = json.dumps(rest, sort_keys=True)
        twin = next(number for number in count() if value not in grouped.get((key, number), {}))
        grouped.setdefault((key, twin), {})[value] = row
    lines: Lines = {}
    for group in grouped.values():
        line = dict(sorted(group.items()))
        name, first = _called(list(line.values())), next(iter(line.values()))
        lines[first if name in lines else name] = line
    return lines


def _taken(tree: dict[str, Any], field: str, where: str) -> float:
    """Take a field out of an experiment's tree and return its value."""
    *above, last = field.split(".")
    holder: Any = tree
    for name in above:
        holder = holder.get(name) if isinstance(holder, Mapping) else None
    if not isinstance(holder, dict) or last not in holder:
        near = did_you_mean(last, holder) if isinstance(holder, Mapping) else did_you_mean(above[0], tree)
        raise ConfigError(f"{where}: over {field!r}: there is no such field{near}; name a field of numbers")
    value = holder.pop(last)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: over {field!r}: it is {value!r}; name a field of numbers")
    return float(value)


def _called(rows: Sequence[str]) -> str:
    """Return the words, apart by commas, with which all names begin; the first name where they share none."""
    shared: list[str] = []
    for words in zip(*(row.split(", ") for row in rows), strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return ", ".join(shared) or rows[0]
