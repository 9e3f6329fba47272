"""Standings: the trials of a sweep as a table for people and for programs, and the best trial as an experiment."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from rich.table import Table

from orchestrator.direction import best_first, words
from orchestrator.results.text import MARK, NOTHING, as_csv, as_markdown, as_terminal
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.sweeps.space import Point, describe, params

State = Literal["running", "stopped", "done", "pruned", "failed"]


@dataclass(frozen=True)
class Standing:
    """A trial: its point, how far it got, and its value.

    value   of the objective; for a pruned trial, the last value that it reported
    reason  why it failed
    run     the folder of the run by which it is judged
    """

    number: int
    point: Point
    state: State
    value: float | None = None
    steps: int = 0
    reason: str = ""
    run: str = ""


def named(config: SweepConfig, number: int, point: Point) -> str:
    """Name a trial for people."""
    return f"trial {number}: {describe(config.space, point)}"


def best(config: SweepConfig, standings: Sequence[Standing]) -> Standing | None:
    """Return the best trial that ran to its end; the first of equals."""
    first = ranked(config, standings)[:1]
    return first[0] if first and first[0].state == "done" and first[0].value is not None else None


def sentence(config: SweepConfig, standing: Standing) -> str:
    """Say in one line how a trial ended."""
    name = named(config, standing.number, standing.point)
    score = f"{config.objective.metric} {_number(standing.value)}"
    if standing.state == "failed":
        return f"{name}: failed: {standing.reason}"
    if standing.state == "done":
        return f"{name}: {score}"
    return f"{name}: {standing.state} after step {standing.steps}, {score}"


def cells(config: SweepConfig, standings: Sequence[Standing]) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows as text, the best trial first and marked."""
    winner = best(config, standings)
    rows = [
        [
            named(config, standing.number, standing.point),
            standing.state,
            str(standing.steps),
            _number(standing.value) + (f" {MARK}" if standing is winner else ""),
        ]
        for standing in ranked(config, standings)
    ]
    return ["row", "state", "steps", config.objective.metric], rows


def ranked(config: SweepConfig, standings: Sequence[Standing]) -> list[Standing]:
    """Order trials: finished trials by value, then the others in the order in which they began."""
    values = [standing.value if standing.state == "done" else None for standing in standings]
    return [standings[place] for place in best_first(values, config.objective.mode)]


def notes(config: SweepConfig, standings: Sequence[Standing]) -> list[str]:
    """Explain the cells."""
    of = "fine-tuning's best checkpoint" if config.objective.of == "finetune" else "pretraining's last steps"
    wanted = words(config.objective.mode)
    said = [f"{config.objective.metric} of the {of}: {wanted}; one run per point, so no deviation is known"]
    if any(standing.state == "pruned" for standing in standings):
        said.append("pruned: ended early; its last reported value cannot be compared with those of finished trials")
    said += [
        f"trial {standing.number} failed: {standing.reason}" for standing in standings if standing.state == "failed"
    ]
    return said


def markdown(config: SweepConfig, standings: Sequence[Standing]) -> str:
    """Return the standings in Markdown."""
    return as_markdown(config.title, *cells(config, standings), notes(config, standings))


def terminal(config: SweepConfig, standings: Sequence[Standing]) -> Table:
    """Return the standings for rich's console."""
    return as_terminal(config.title, *cells(config, standings), notes(config, standings))


def comma_separated(config: SweepConfig, standings: Sequence[Standing]) -> str:
    """Return one CSV line per trial with every digit, and a column for each number that a point is drawn from."""
    points = [params(config.space, standing.point) for standing in standings]
    names = list(dict.fromkeys(name for point in points for name in point))
    rows = [
        [
            *(named(config, standing.number, standing.point), standing.state, standing.steps, standing.value),
            *(point.get(name) for name in names),
            *(standing.run, standing.reason),
        ]
        for standing, point in zip(standings, points, strict=True)
    ]
    return as_csv(["row", "state", "steps", config.objective.metric, *names, "run", "failure"], rows)


def experiment_file(config: SweepConfig, standing: Standing, tree: dict[str, Any]) -> str:
    """Return a trial's complete experiment as a file that every command accepts."""
    point = "".join(f"#   {field}: {json.dumps(value)}\n" for field, value in standing.point.items())
    comment = (
        f"# Trial {standing.number} of sweep {config.name}, its best so far: "
        f"{config.objective.metric} {standing.value}\n{point}"
    )
    return comment + yaml.safe_dump(tree, sort_keys=False)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"
