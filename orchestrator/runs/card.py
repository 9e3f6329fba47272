"""Card: what a run's encoder or network is, in Markdown: beside its weights, in MLflow and with every export.

All is read from the run's folder. A run whose records are gone, or a folder that holds weights and their description
alone, has a card that says less.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from orchestrator.direction import TEST, direction_of
from orchestrator.history import HISTORY, Once, Tail, metrics_of
from orchestrator.judging.case_scores import case_scores
from orchestrator.judging.cases import CASES
from orchestrator.runs.network import NETWORK, NETWORK_CARD
from orchestrator.tracking.outbox import posted
from orchestrator.training.checkpoint import ENCODER, ENCODER_CARD

PARTS = {"encoder": (ENCODER, ENCODER_CARD), "network": (NETWORK, NETWORK_CARD)}
SCRATCH = "scratch"
LEAST_PATIENTS = 5  # fewer give a bootstrap too little to draw from
DRAWS = 2000
LICENCE = (
    "The code is under the Apache License 2.0. What the weights may be used for is decided by the licences of the "
    "data that they were trained on, which Raydiology does not know."
)


@dataclass(frozen=True)
class TrainedPart:
    """The encoder of a finished pretraining, or the network of a fine-tuning, in the run's folder.

    Where it lies ``alone``, as in an export, ``run`` is the folder of its files.
    """

    run: Path
    part: str
    alone: bool = False

    @classmethod
    def of(cls, run: Path) -> "TrainedPart | None":
        """Return what a run has trained; None if no weights are there."""
        found = (cls(run, part) for part, (weights, _) in PARTS.items() if (run / part / weights).is_file())
        return next(found, None)

    @property
    def folder(self) -> Path:
        return self.run if self.alone else self.run / self.part

    @property
    def weights(self) -> Path:
        return self.folder / PARTS[self.part][0]

    @property
    def description(self) -> Path:
        return self.folder / PARTS[self.part][1]

    @cached_property
    def card(self) -> dict[str, Any]:
        """The settings that were written beside the weights."""
        return json.loads(self.description.read_text())

    @cached_property
    def settings(self) -> dict[str, str]:
        """The run's config, flat, as MLflow has it."""
        return {name: value for line in posted(self.run, ("params",)) for name, value in line["params"].items()}

    @cached_property
    def start(self) -> dict[str, Any]:
        """The name, the experiment and the tags that the run was given when it began."""
        nameless = {"name": self.run.absolute().name, "experiment": self.run.absolute().parent.name, "tags": {}}
        return next(iter(reversed(posted(self.run, ("start",)))), nameless)

    @property
    def sets(self) -> list[dict[str, Any]]:
        """Names and digests of the shards that it was trained on."""
        return list(posted(self.run, ("dataset",)))


def told_of(trained: TrainedPart) -> dict[str, str]:
    """Return a few settings that tell models apart."""
    card, settings, tags = trained.card, trained.settings, trained.start["tags"]
    encoder, task = card["encoder"], card.get("task")
    begun = settings.get("pretrained") != SCRATCH
    with safe_open(trained.weights, "np") as file:
        count = sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118
    told = {
        "encoder": f"{encoder['name']}, {encoder['spatial_dims']}D, {encoder['in_channels']} channels",
        "row": tags.get("row", ""),
        "method": "+".join(_named(settings, card, "name")) if begun else SCRATCH,
        "variant": "+".join(_named(settings, card, "variant")) if begun else "",
        "task": task["name"] if task else "",
        "seed": tags.get("seed") or str(card.get("seed", "")),
        "recipe": ", ".join(str(recipe.get("name")) for recipe in _several(card.get("recipe", []))),
        "digest": card.get("digest", ""),
        "parameters": f"{count:,}",
    }
    return {name: value for name, value in told.items() if value}


def of_the_whole(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores of the whole: those of single labels are in the run's files."""
    return {
        name: value for name, value in scores.items() if "/" not in name.removeprefix(TEST) and direction_of(name)
    }


def markdown(trained: TrainedPart, scores: Mapping[str, float], use: Sequence[str]) -> str:
    """Write a card; ``use`` are the lines that say how the weights are loaded, and ``scores`` those of the run."""
    return "\n".join(_lines(trained, of_the_whole(scores), use))


def _lines(trained: TrainedPart, scores: Mapping[str, float], use: Sequence[str]) -> Iterator[str]:
    card, start, run = trained.card, trained.start, trained.run.absolute()
    told = told_of(trained)
    yield from (f"# {start['name']}", "")
    yield from (f"The {trained.part} of run `{run.name}`, in the experiment `{start['experiment']}`.", "")
    yield from (f"- {name}: {value}" for name, value in told.items() if name != "digest")
    for stage in card.get("stages") or []:
        budget = {name: value for name, value in stage["budget"].items() if value is not None}
        yield f"- stage {stage['name']}: {', '.join(f'{name} {value}' for name, value in budget.items())}"
    if names := card.get("class_names"):
        yield f"- outputs: {', '.join(names)}"
    yield from ("", "## Data", "")
    sets = trained.sets or [{"name": "shards", "digest": told.get("digest", "unknown")}]
    yield from dict.fromkeys(f"- {one['name']}, digest `{one['digest'][:16]}`" for one in sets)
    if counts := card.get("trained_on"):
        yield f"- trained on {counts['samples']:,} samples of {counts['patients']:,} patients"
    yield from ("", "## Scores", "")
    yield from _score_lines(run, scores) if scores else _health_lines(run)
    yield from ("", "## Use", "", *use)
    yield from ("", "## Licence", "", LICENCE, "", "## Made by", "")
    yield f"- command: `{start['tags'].get('mlflow.source.name', 'unknown')}`"
    yield f"- commit: `{start['tags'].get('git_commit', 'unknown')}`"
    yield ""


def _named(settings: Mapping[str, str], card: Mapping[str, Any], field: str) -> list[str]:
    """Return a field of the method, or of the method of each stage."""
    path = f"method.{field}"
    found = [value for name, value in settings.items() if name == path or name.endswith(f".{path}")]
    return found or [stage["method"][field] for stage in card.get("stages") or [] if field in stage["method"]]


def _score_lines(run: Path, scores: Mapping[str, float]) -> Iterator[str]:
    yield from ("| metric | value | 95 % interval over patients |", "|---|---|---|")
    for name, value in scores.items():
        yield f"| {name} | {value:.4f} | {_interval(run, name, value)} |"
    yield ""
    yield "Of one run: other seeds and other patients give other scores. Intervals are percentiles of a bootstrap."


def _interval(run: Path, metric: str, value: float) -> str:
    """Return the interval of a run's mean over its patients, by a bootstrap of the patients."""
    from scipy import stats  # every worker imports this module, and none draws intervals

    patients = case_scores(run / CASES, metric, value)
    if patients is None:
        return "-"
    if len(patients) < LEAST_PATIENTS:
        return f"too few patients ({len(patients)})"
    found = stats.bootstrap(
        ([*patients.values()],), np.mean, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(0)
    )
    return f"{found.confidence_interval.low:.4f} to {found.confidence_interval.high:.4f} ({len(patients)})"


def _health_lines(run: Path) -> Iterator[str]:
    """Say how a pretraining ended: it has no score of its own."""
    last: dict[str, float] = {}
    for _, line in Once().new(Tail(run / HISTORY).lines()) if (run / HISTORY).exists() else ():
        last |= metrics_of(line)
    shown = {name: value for name, value in last.items() if name == "loss" or name.startswith(("health/", "probe/"))}
    ending = " Its last measurements:" if shown else ""
    yield f"A pretraining has no score of its own; fine-tune it, or see `raydiology probe`.{ending}"
    yield from ([""] if shown else [])
    yield from (f"- {name}: {value:.4f}" for name, value in shown.items())


def _several(recipe: Any) -> list[dict[str, Any]]:
    return recipe if isinstance(recipe, list) else [recipe]
