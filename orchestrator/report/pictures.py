"""Pictures of cases: the worst, the middle and the best one, the same slice under each row's network."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from orchestrator.config.experiment import Experiment
from orchestrator.direction import TEST, Direction
from orchestrator.judging.gallery import GALLERIES
from orchestrator.judging.validation import evidence_of
from orchestrator.report.case_panels import Legend, Panel, Seen, legend_of, panel_of, truth_of
from orchestrator.results.comparison import ComparisonLine
from orchestrator.results.run_cards import EXPERIMENT
from orchestrator.runs.labelled import downstream_of, labelled_samples
from orchestrator.runs.network import NETWORK, trained_network
from orchestrator.training.world import World

WITHIN_S = 60.0
NETWORK_FOLDER = "network"


@dataclass(frozen=True)
class CaseStrip:
    """A case: the slice or picture that shows most, its truth, and what each row's network makes of it.

    ``legend`` has the names and colours of the labels or classes of boxes that occur.
    """

    heading: str
    panels: tuple[Panel, ...]
    legend: Legend


@dataclass(frozen=True)
class FirstRun:
    """A row's first run: its experiment and network."""

    name: str
    experiment: Experiment
    folder: Path

    @classmethod
    def of(cls, line: ComparisonLine) -> "FirstRun | None":
        """Open a row's first run; None where its files are not within reach."""
        folder = Path(line.scored[0].place) if line.scored else Path()
        settings = folder / EXPERIMENT
        if not settings.exists() or not (folder / NETWORK_FOLDER / NETWORK).exists():
            return None
        experiment = Experiment.model_validate_json(settings.read_text())
        return cls(line.name, experiment, folder) if experiment.downstream else None


def strips_of(lines: Sequence[ComparisonLine], metric: str, direction: Direction | None) -> list[CaseStrip]:
    """Return the worst, the middle and the best case by their mean over all runs; none where they cannot be drawn.

    Rows are left out once a minute has passed, so that networks of whole volumes do not keep a person waiting.
    """
    chosen = _chosen([line for line in lines if line.scored], direction)
    runs = [run for line in lines if (run := FirstRun.of(line))]
    if not chosen or not runs:
        return []
    started, seen = time.perf_counter(), dict[str, dict[str, Seen]]()
    names: tuple[str, ...] = ()
    for run in runs:
        if time.perf_counter() - started > WITHIN_S:
            break
        try:
            seen[run.name], names = _judged(run, [*chosen.values()], metric.startswith(TEST))
        except (ValueError, RuntimeError, OSError):  # shards or networks that are gone, or are others by now
            continue
    scores = {line.name: line.scores.patients for line in lines}

    def strip(which: str, patient: str) -> CaseStrip:
        shown = {name: slices[patient] for name, slices in seen.items() if patient in slices}
        first = next(iter(shown.values()))
        panels = truth_of(first, names)
        for name, item in shown.items():
            own = fmean(run[patient] for run in scores[name] if run and patient in run)
            panels.append(panel_of(item, name, own, names))
        return CaseStrip(f"{which} ({first.title})", tuple(panels), legend_of([*shown.values()], names))

    return [strip(which, one) for which, one in chosen.items() if any(one in slices for slices in seen.values())]


def _chosen(lines: Sequence[ComparisonLine], direction: Direction | None) -> dict[str, str]:
    """Return the worst, the middle and the best patient by the mean score over all runs of all rows."""
    known = [run for line in lines for run in line.scores.patients if run]
    if direction is None or not known:
        return {}
    shared = [patient for patient in known[0] if all(patient in run for run in known)]
    means = {patient: fmean(run[patient] for run in known) for patient in shared}
    ranked = sorted(means, key=lambda patient: (means[patient], patient))
    if direction == "min":
        ranked.reverse()
    if len(ranked) < 2:
        return {"Case": ranked[0]} if ranked else {}
    middle = {"Middle case": ranked[len(ranked) // 2]} if len(ranked) > 2 else {}
    return {"Worst case": ranked[0], **middle, "Best case": ranked[-1]}


def _judged(run: FirstRun, patients: Sequence[str], tested: bool) -> tuple[dict[str, Seen], tuple[str, ...]]:
    """Return what shows most of each patient as the run's network judges it, and the names of labels or classes."""
    labelled = labelled_samples(downstream_of(run.experiment))
    task = trained_network(run.experiment, labelled.shards, run.folder / NETWORK_FOLDER)
    part = labelled.test if tested and labelled.test else labelled.val
    owners = labelled.shards.rows["patient"].take(part.row_ids).to_pylist()
    found: dict[str, Seen] = {}
    for patient in patients:
        gallery, own = GALLERIES[task.needs](), [owner == patient for owner in owners]
        with torch.no_grad():
            evidence_of(task, labelled.shards, part.row_ids[own], World(), gallery)
        if shown := gallery.chosen():
            found[patient] = shown[0]
    return found, task.class_names
