"""Pictures of cases: the worst, the middle and the best one, the same slice under each row's network."""

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.colors import to_rgb
from PIL import Image

from orchestrator.config.experiment import Experiment
from orchestrator.direction import TEST, Direction
from orchestrator.judging.gallery import MaskGallery
from orchestrator.judging.images import MaskedSlice
from orchestrator.judging.panels import class_colours, grey_window
from orchestrator.judging.validation import evidence_of
from orchestrator.results.comparison import ComparisonLine
from orchestrator.results.run_cards import EXPERIMENT
from orchestrator.runs.labelled import LabelledSamples, downstream_of, labelled_samples
from orchestrator.runs.network import NETWORK, trained_network
from orchestrator.training.world import World

WITHIN_S = 60.0
OPACITY, LEAST_PIXELS = 0.5, 200
NETWORK_FOLDER = "network"


@dataclass(frozen=True)
class Panel:
    """A picture as the address of an image, and what it shows."""

    image: str
    words: str


@dataclass(frozen=True)
class CaseStrip:
    """A case: the slice with the most labels, its truth, and what each row's network makes of it.

    ``legend`` has the names and colours of the labels that occur.
    """

    heading: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FirstRun:
    """A row's first run: its experiment and network."""

    name: str
    experiment: Experiment
    folder: Path

    @classmethod
    def of(cls, line: ComparisonLine) -> "FirstRun | None":
        """Open a row's first run; None where its files are not within reach, or it does not segment."""
        folder = Path(line.scored[0].place) if line.scored else Path()
        settings = folder / EXPERIMENT
        if not settings.exists() or not (folder / NETWORK_FOLDER / NETWORK).exists():
            return None
        experiment = Experiment.model_validate_json(settings.read_text())
        task = experiment.downstream
        return cls(line.name, experiment, folder) if task and task.task.name == "segmentation" else None


def strips_of(lines: Sequence[ComparisonLine], metric: str, direction: Direction | None) -> list[CaseStrip]:
    """Return the worst, the middle and the best case by their mean over all runs; none where they cannot be drawn.

    Rows are left out once a minute has passed, so that networks of whole volumes do not keep a person waiting.
    """
    chosen = _chosen([line for line in lines if line.scored], direction)
    runs = [run for line in lines if (run := FirstRun.of(line))]
    if not chosen or not runs:
        return []
    started, seen = time.perf_counter(), dict[str, dict[str, MaskedSlice]]()
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
        panels = [_panel(first, None, "image", names), _panel(first, first.truth, "truth", names)]
        for name, item in shown.items():
            own = fmean(run[patient] for run in scores[name] if run and patient in run)
            panels.append(_panel(item, item.prediction, f"{name}: {own:.3f}", names))
        occur = {int(label) for item in shown.values() for label in np.union1d(item.truth, item.prediction)} - {0}
        colours = class_colours(len(names))
        legend = tuple((names[label], colours[label]) for label in sorted(occur))
        return CaseStrip(f"{which} ({first.title})", tuple(panels), legend)

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


def _judged(run: FirstRun, patients: Sequence[str], tested: bool) -> tuple[dict[str, MaskedSlice], tuple[str, ...]]:
    """Return the richest slice of each patient as the run's network judges it, and the names of the labels."""
    labelled = labelled_samples(downstream_of(run.experiment))
    task = trained_network(run.experiment, labelled.shards, run.folder / NETWORK_FOLDER)
    gallery, volumes = MaskGallery(), dict[str, str]()
    rows = _rows_of(labelled, patients, tested, volumes)
    with torch.no_grad():
        evidence_of(task, labelled.shards, rows, World(), gallery)
    best: dict[str, MaskedSlice] = {}
    for volume in sorted(gallery.best):
        best.setdefault(volumes[volume], gallery.best[volume][1])
    return best, task.class_names


def _rows_of(
    labelled: LabelledSamples, patients: Sequence[str], tested: bool, volumes: dict[str, str]
) -> Int[np.ndarray, " n"]:
    """Return the rows of some patients among those judged, and note which volume is whose."""
    part = labelled.test if tested and labelled.test else labelled.val
    held = labelled.shards.rows.select(["patient", "volume"]).take(part.row_ids).to_pydict()
    kept = [place for place, patient in enumerate(held["patient"]) if patient in patients]
    volumes |= {held["volume"][place]: held["patient"][place] for place in kept}
    return part.row_ids[kept]


def _panel(item: MaskedSlice, mask: Int[np.ndarray, "h w"] | None, words: str, names: Sequence[str]) -> Panel:
    low, high = grey_window(item.image[None])
    grey = np.clip((item.image - low) / (high - low), 0, 1)[..., None].repeat(3, axis=2)
    if mask is not None:
        colours = np.array([to_rgb(colour) for colour in class_colours(len(names))])
        share = OPACITY * (mask > 0)[..., None]
        grey = (1 - share) * grey + share * colours[mask]
    return Panel(_address(_turned(grey, item)), words)


def _turned(pixels: Float[np.ndarray, "h w 3"], item: MaskedSlice) -> UInt8[np.ndarray, "r c 3"]:
    """Return a slice as it is looked at, with square pixels: a patient's left is on the right."""
    turned = pixels if item.upright else pixels[::-1, ::-1]
    height, width = turned.shape[0] * item.spacing_mm[0], turned.shape[1] * item.spacing_mm[1]
    zoom = max(1.0, LEAST_PIXELS / max(turned.shape[:2])) * max(turned.shape[:2]) / max(height, width)
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    image = Image.fromarray((255 * turned).round().astype(np.uint8))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _address(pixels: UInt8[np.ndarray, "r c 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
