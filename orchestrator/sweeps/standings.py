"""Standings: the trials of a sweep as a table for people and for programs, and the best trials as experiments."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any, Literal

import yaml
from rich.table import Table

from orchestrator.direction import best_first, words
from orchestrator.results.text import MARK, NOTHING, as_csv, as_markdown, as_terminal, spread
from orchestrator.runs.work import TrainingWork
from orchestrator.sweeps.domains import is_number
from orchestrator.sweeps.savings import saved_words, savings
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.sweeps.space import Point, Space, describe, params

State = Literal["running", "stopped", "done", "pruned", "failed"]
DECIMALS = 4


@dataclass(frozen=True)
class Standing:
    """A trial: its point, how far it got, and its value.

    value    of the objective; for a trial that was ended by it, the last value that it reported
    reason   why it failed
    run      the folder of the run by which it is judged
    others   the values of what else is sought
    repeats  the values with each seed, if there are several, of which ``value`` is the mean
    judged   the last value of the metric by which trials are ended, if that is not the objective
    work     its trainings
    pretrained  the folder of its pretraining
    source   of a population: the trial with whose end it begins
    """

    number: int
    point: Point
    state: State
    value: float | None = None
    steps: int = 0
    reason: str = ""
    run: str = ""
    others: tuple[float, ...] = ()
    repeats: tuple[float, ...] = ()
    judged: float | None = None
    work: tuple[TrainingWork, ...] = ()
    pretrained: str = ""
    source: int | None = None

    @property
    def values(self) -> tuple[float, ...] | None:
        """The values of all that is sought; None unless the trial ran to its end."""
        return (self.value, *self.others) if self.state == "done" and self.value is not None else None

    @property
    def shown(self) -> str:
        """The value with its deviation over the seeds, if there are several."""
        return spread(self.value, stdev(self.repeats) if len(self.repeats) > 1 else None, DECIMALS)

    def fields(self, space: Space) -> dict[str, float]:
        """Return those numbers of its point that can be drawn over steps."""
        numbers = {name: value for name, value in params(space, self.point).items() if is_number(value)}
        return {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}


def named(config: SweepConfig, number: int, point: Point) -> str:
    """Name a trial, or a member's segment, for people."""
    if config.search.name == "pbt":
        segment, member = divmod(number, config.search.population)
        return f"member {member}, segment {segment + 1}: {describe(config.space, point)}"
    return f"trial {number}: {describe(config.space, point)}"


def best(config: SweepConfig, standings: Sequence[Standing]) -> Standing | None:
    """Return the best trial that ran to its end; the first of equals. With several objectives, of the front."""
    found = ranked(config, comparable(config, standings))[:1]
    return found[0] if found and found[0].values is not None else None


def front(config: SweepConfig, standings: Sequence[Standing]) -> list[Standing]:
    """Return the trials that no other trial equals or beats in everything and beats in something, best first."""
    signs = [1 if one.mode == "max" else -1 for one in config.objectives]

    def beats(first: Standing, second: Standing) -> bool:
        pairs = list(zip(_signed(first, signs), _signed(second, signs), strict=True))
        return all(own >= other for own, other in pairs) and any(own > other for own, other in pairs)

    done = [standing for standing in comparable(config, standings) if standing.values is not None]
    kept = [one for one in done if not any(beats(other, one) for other in done)]
    return sorted(kept, key=lambda one: _signed(one, signs), reverse=True)


def comparable(config: SweepConfig, standings: Sequence[Standing]) -> Sequence[Standing]:
    """Return the trials that may be compared: of a population, those of the newest segment that any has ended."""
    if config.search.name != "pbt":
        return standings
    size = config.search.population
    newest = max((one.number // size for one in standings if one.values is not None), default=0)
    return [one for one in standings if one.number // size == newest]


def copies(config: SweepConfig, standings: Sequence[Standing]) -> list[tuple[Standing, Standing, Standing]]:
    """Return the copies of a population: the new segment, the trial whose end it copied, and its own one before."""
    size = config.search.population
    return [
        (one, standings[one.source], standings[one.number - size])
        for one in standings
        if one.source is not None and one.source != one.number - size
    ]


def copies_told(config: SweepConfig, standings: Sequence[Standing]) -> list[str]:
    """Say who copied whom in a population, a sentence for each copy."""
    return [_copy_words(config, *copy) for copy in copies(config, standings)]


def _copy_words(config: SweepConfig, new: Standing, source: Standing, before: Standing) -> str:
    """Say who copied whom, when, and with which values it went on."""
    size, metric = config.search.population, config.objective.metric
    lost = f"{metric} {before.shown}" if before.state == "done" else "failed"
    own = describe(config.space, before.point)
    return (
        f"after segment {new.number // size}, member {new.number % size} ({own}; {lost}) "
        f"copied weights and optimiser of member {source.number % size} ({describe(config.space, source.point)}; "
        f"{metric} {source.shown}) and went on with {describe(config.space, new.point)}"
    )


def _signed(standing: Standing, signs: Sequence[int]) -> list[float]:
    return [sign * value for sign, value in zip(signs, standing.values or (), strict=True)]


def sentence(config: SweepConfig, standing: Standing) -> str:
    """Say in one line how a trial ended."""
    name = named(config, standing.number, standing.point)
    if standing.state == "failed":
        return f"{name}: failed: {standing.reason}"
    scores = [f"{config.objective.metric} {standing.shown}"]
    if standing.state == "done":
        others = zip(config.also, standing.others, strict=True)
        scores += [f"{one.metric} {value:.{DECIMALS}f}" for one, value in others]
        return f"{name}: {', '.join(scores)}"
    if config.scheduler.metric:
        scores = [f"{config.scheduler.metric} {spread(standing.judged, None, DECIMALS)}"]
    return f"{name}: {standing.state} after step {standing.steps}, {scores[0]}"


def answer(config: SweepConfig, standings: Sequence[Standing]) -> str:
    """Say which trial is best, or which are on the Pareto front; nothing if none has ended."""
    leading = front(config, standings)
    if not leading:
        return ""
    if not config.also:
        return f"best {sentence(config, leading[0])}"
    names = "; ".join(sentence(config, one) for one in leading)
    ended = sum(one.values is not None for one in standings)
    what = " and ".join(one.metric for one in config.objectives)
    verb = "is" if len(leading) == 1 else "are"
    return f"on the Pareto front of {what} {verb} {len(leading)} of {ended} trials: {names}"


def cells(config: SweepConfig, standings: Sequence[Standing]) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows as text, the best trials first and marked."""
    winners = front(config, standings) if config.also else [best(config, standings)]
    mark, metric = "front" if config.also else MARK, config.scheduler.metric
    rows = [
        [
            named(config, standing.number, standing.point),
            standing.state,
            str(standing.steps),
            standing.shown + (f" {mark}" if standing in winners else ""),
            *(f"{value:.{DECIMALS}f}" for value in standing.others),
            *([NOTHING] * (len(config.also) - len(standing.others))),
            *([spread(standing.judged, None, DECIMALS)] if metric else []),
        ]
        for standing in ranked(config, comparable(config, standings))
    ]
    return ["row", "state", "steps", *(one.metric for one in config.objectives), *([metric] if metric else [])], rows


def ranked(config: SweepConfig, standings: Sequence[Standing]) -> list[Standing]:
    """Order trials: the front if there are several objectives, finished trials by value, then the others in order."""
    values = [standing.value if standing.state == "done" else None for standing in standings]
    by_value = [standings[place] for place in best_first(values, config.objective.mode)]
    leading = front(config, standings) if config.also else []
    return [*leading, *(one for one in by_value if one not in leading)]


def notes(config: SweepConfig, standings: Sequence[Standing]) -> list[str]:
    """Explain the cells."""
    of = "fine-tuning's best checkpoint" if config.objective.of == "finetune" else "pretraining's last steps"
    wanted = words(config.objective.mode)
    runs = "one run per point, so no deviation is known"
    if config.seeds:
        runs = f"mean and deviation over seeds {', '.join(map(str, config.seeds))}"
    said = [f"{config.objective.metric} of the {of}: {wanted}; {runs}"]
    said += [f"{one.metric}: {words(one.mode)}" for one in config.also]
    if config.also:
        said.append("front: no other trial is at least as good in everything and better in something")
    if any(standing.state == "pruned" for standing in standings):
        said.append("pruned: ended early; its last reported value cannot be compared with those of finished trials")
    said += saved(config, standings)
    if config.search.name == "pbt":
        said.append(f"the last segment alone; the {len(standings)} segments of all members are in sweep.csv")
    said += copies_told(config, standings)
    said += [
        f"trial {standing.number} failed: {standing.reason}" for standing in standings if standing.state == "failed"
    ]
    return said


def saved(config: SweepConfig, standings: Sequence[Standing]) -> list[str]:
    """Say what was saved by ending trials early, if anything was."""
    ended = [standing for standing in standings if standing.state in ("done", "pruned")]
    found = savings([(standing.state == "pruned", standing.work) for standing in ended])
    by = config.scheduler.metric or config.objective.metric
    return [saved_words(found, f"{config.scheduler.name} by {by}")] if found else []


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
    seeds, metric, also = config.seeds, config.scheduler.metric, len(config.also)
    population = config.search.name == "pbt"
    rows = [
        [
            *(named(config, standing.number, standing.point), standing.state, standing.steps, standing.value),
            *(*standing.others, *[None] * (also - len(standing.others))),
            *(standing.repeats or [None] * len(seeds)),
            *([standing.judged] if metric else []),
            *(point.get(name) for name in names),
            *(standing.run, standing.reason),
            *([standing.pretrained, _origin(standing, standings)] if population else []),
        ]
        for standing, point in zip(standings, points, strict=True)
    ]
    sought = [one.metric for one in config.objectives]
    by_seed = [f"{sought[0]} of seed {seed}" for seed in seeds]
    heading = ["row", "state", "steps", *sought, *by_seed, *([metric] if metric else []), *names, "run", "failure"]
    return as_csv([*heading, *(["pretrained", "begins_with"] if population else [])], rows)


def _origin(standing: Standing, standings: Sequence[Standing]) -> str:
    """Return the folder of the pretraining with whose end a member's segment begins."""
    return "" if standing.source is None else standings[standing.source].pretrained


def experiment_file(
    config: SweepConfig, standing: Standing, tree: dict[str, Any], standings: Sequence[Standing] = ()
) -> str:
    """Return a trial's complete experiment as a file that every command accepts.

    Of a population's member, a comment tells with which values its weights were trained before.
    """
    point = "".join(f"#   {field}: {json.dumps(value)}\n" for field, value in standing.point.items())
    scores = zip(config.objectives, standing.values or (), strict=True)
    which = "one of its Pareto front" if config.also else "its best so far"
    name = named(config, standing.number, standing.point).partition(":")[0].capitalize()
    comment = (
        f"# {name} of sweep {config.name}, {which}: "
        f"{', '.join(f'{one.metric} {value}' for one, value in scores)}\n{point}"
    )
    if before := _ancestry(config, standing, standings):
        comment += f"# This file alone does not give its weights (run {standing.pretrained}), which came by:\n"
        comment += "".join(f"#   {line}\n" for line in before)
    return comment + yaml.safe_dump(tree, sort_keys=False)


def _ancestry(config: SweepConfig, standing: Standing, standings: Sequence[Standing]) -> list[str]:
    """Return the segments in which a member's weights were trained, the first one first."""
    found, one = [standing], standing
    while one.source is not None and standings:
        one = standings[one.source]
        found.append(one)
    return [named(config, own.number, own.point) for own in reversed(found)] if len(found) > 1 else []
