"""Records: what a sweep leaves in its folder and in MLflow: its standings, its best experiments, its findings."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data.shards.writer import write_atomically
from orchestrator.config.experiment import Experiment
from orchestrator.results.findings import MemberCopy, MemberCourse, SweepFindings, TrialValues, note_findings
from orchestrator.sweeps.settings import SweepConfig
from orchestrator.sweeps.space import Point, describe
from orchestrator.sweeps.standings import (
    Standing,
    answer,
    best,
    comma_separated,
    copies,
    copies_told,
    experiment_file,
    front,
    markdown,
    named,
    saved,
)
from orchestrator.tracking.tracker import Tracker

FRONT = "front"


def write(
    folder: Path, config: SweepConfig, standings: Sequence[Standing], experiment: Callable[[Point], Experiment]
) -> None:
    """Write the standings for people and for programs, and the experiments of the best trials."""
    write_atomically(folder / "sweep.md", markdown(config, standings))
    write_atomically(folder / "sweep.csv", comma_separated(config, standings))
    note_findings(folder, findings(config, standings))
    leading = front(config, standings)
    files = {"best.yaml": leading[0]} if leading else {}
    if config.also:
        files |= {f"{FRONT}/trial_{one.number}.yaml": one for one in leading}
    for old in folder.glob(f"{FRONT}/*.yaml"):
        if f"{FRONT}/{old.name}" not in files:
            old.unlink()
    for name, standing in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        tree = experiment(standing.point).model_dump(mode="json")
        write_atomically(folder / name, experiment_file(config, standing, tree, standings))


def findings(config: SweepConfig, standings: Sequence[Standing]) -> SweepFindings:
    """Return what a report shows of a sweep beyond its trials' runs."""
    leading = front(config, standings)
    population = config.search.name == "pbt"
    said = answer(config, standings) if config.also or population else ""
    names = {one.number: named(config, one.number, one.point) for one in standings}
    trials = [
        TrialValues(names[one.number], one.values, one in leading) for one in standings if one.values is not None
    ]
    return SweepFindings(
        answer=f"{said[:1].upper()}{said[1:]}." if said else "",
        notes=(*saved(config, standings), *copies_told(config, standings)),
        shown={names[one.number]: one.shown for one in standings if one.repeats} or None,
        sought=tuple(one.metric for one in config.objectives) if config.also else (),
        trials=tuple(trials) if config.also else (),
        members=tuple(_members(config, standings)) if population else (),
        copies=tuple(_copies(config, standings)) if population else (),
    )


def _members(config: SweepConfig, standings: Sequence[Standing]) -> Iterator[MemberCourse]:
    """Yield how each member of a population fared, by the steps that its segments ended after."""
    size, names = config.search.population, list(standings[0].fields(config.space)) if standings else []
    for number in range(size):
        own = [one for one in standings[number::size] if one.value is not None and one.state == "done"]
        numbers = {name: {one.steps: one.fields(config.space)[name] for one in own} for name in names}
        yield MemberCourse(number, {one.steps: one.value or 0.0 for one in own}, numbers)


def _copies(config: SweepConfig, standings: Sequence[Standing]) -> Iterator[MemberCopy]:
    size = config.search.population
    for new, source, _ in copies(config, standings):
        yield MemberCopy(source.steps, new.number % size, source.number % size)


def log(folder: Path, config: SweepConfig, standings: Sequence[Standing], tracker: Tracker) -> None:
    """Name the sweep's MLflow run by its answer, and log its files."""
    if (winner := best(config, standings)) and winner.value is not None:
        said = answer(config, standings)
        name = f"sweep: {winner.value:.4f} {describe(config.space, winner.point)} ({config.name})"
        row = named(config, winner.number, winner.point)
        tracker.answer(name, row, f"sweep {config.name}: {said}")
        tracker.summary({f"best/{config.objective.metric}": winner.value})
    for name in ("sweep.md", "sweep.csv", "best.yaml"):
        if (folder / name).exists():
            tracker.artifact(folder / name)
