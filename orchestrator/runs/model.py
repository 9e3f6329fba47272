"""Model: a run's encoder or network as MLflow lists it: its weights, its signature and its card.

All is read from the run's folder, so that a run which an older version has done has a model too.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from data.shards.writer import write_atomically
from methods.encoders import ENCODERS
from orchestrator.config.parts import EncoderConfig
from orchestrator.direction import TEST, direction_of
from orchestrator.history import HISTORY, TIME, Once, Tail, metrics_of
from orchestrator.judging.case_scores import case_scores
from orchestrator.judging.cases import CASES
from orchestrator.runs.export import SCRIPT, loading_script
from orchestrator.runs.network import NETWORK, NETWORK_CARD
from orchestrator.tracking.model_record import ModelRecord, TensorShape
from orchestrator.tracking.outbox import posted
from orchestrator.training.checkpoint import ENCODER, ENCODER_CARD
from orchestrator.training.outline import outline_of

CARD = "card.md"
PARTS = {"encoder": (ENCODER, ENCODER_CARD), "network": (NETWORK, NETWORK_CARD)}
SCRATCH = "scratch"
LEAST_PATIENTS = 5  # fewer give a bootstrap too little to draw from
DRAWS = 2000
LICENCE = (
    "The code is under the Apache License 2.0. What the weights may be used for is decided by the licences of the "
    "data that they were trained on, which Raydiology does not know."
)


def record_of(run: Path, scores: Mapping[str, float]) -> ModelRecord | None:
    """Write the card of a run's model beside its weights and return its record; None without weights or outbox.

    ``scores`` are those of the run's best checkpoint.
    """
    for part, (weights, card_name) in PARTS.items():
        folder = run / part
        if not (folder / weights).is_file():
            continue
        card = json.loads((folder / card_name).read_text())
        start, params, sets = (posted(run, (op,)) for op in ("start", "params", "dataset"))
        if not start or not sets:  # its records were deleted while it ran, so MLflow hears no more of it
            return None
        settings: dict[str, str] = {name: value for line in params for name, value in line["params"].items()}
        began = settings.get("pretrained", SCRATCH)
        told, scored = _params(card, start[-1], folder / weights, settings), _of_the_whole(scores)
        text = "\n".join(_card(run, part, card, told, scored, sets, start[-1]))
        write_atomically(folder / CARD, text)
        if script := loading_script(card, part):
            write_atomically(folder / SCRIPT, script)
        inputs, outputs = signature_of(card)
        row = start[-1]["tags"].get("row") or told.get("method") or told["encoder"]
        return ModelRecord(
            name=f"{row}, seed {told['seed']}, {part}",
            kind=part,
            key=start[-1]["key"],
            files=tuple(sorted(path for path in folder.iterdir() if path.is_file())),
            card=text,
            params=told,
            scores=scored,
            loss=_last_loss(run) if part == "encoder" else None,
            dataset=(sets[0]["name"], sets[0]["digest"]),
            inputs=inputs,
            outputs=outputs,
            start=None if began == SCRATCH else began,
        )
    return None


def signature_of(card: Mapping[str, Any]) -> tuple[tuple[TensorShape, ...], tuple[TensorShape, ...]]:
    """Return the tensors that an exported encoder or network takes and gives; -1 stands for any length."""
    kind: Any = ENCODERS[card["encoder"]["name"]]
    config: EncoderConfig = kind.Config.model_validate(card["encoder"])
    space = (-1,) * card["encoder"]["spatial_dims"]
    images = TensorShape("images", "float32", (-1, card["encoder"]["in_channels"], *space))
    task = card.get("task")
    if task is None:
        levels = enumerate(outline_of(config).channels)
        return (images,), tuple(TensorShape(f"level {n}", "float32", (-1, width, *space)) for n, width in levels)
    classes = len(card["class_names"])
    if task["name"] == "detection":
        found = (
            ("boxes", "float32", (-1, 2 * len(space))),
            ("scores", "float32", (-1,)),
            ("classes", "int64", (-1,)),
        )
        return (images,), tuple(TensorShape(*one) for one in found)
    dense = space if task["name"] == "segmentation" else ()
    return (images,), (TensorShape("logits", "float32", (-1, classes, *dense)),)


def _of_the_whole(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores of the whole: those of single labels are in the run's files."""
    return {
        name: value for name, value in scores.items() if "/" not in name.removeprefix(TEST) and direction_of(name)
    }


def _params(
    card: Mapping[str, Any], start: Mapping[str, Any], weights: Path, settings: Mapping[str, str]
) -> dict[str, str]:
    encoder, task = card["encoder"], card.get("task")
    begun = settings.get("pretrained") != SCRATCH
    with safe_open(weights, "np") as file:
        count = sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118
    told = {
        "encoder": f"{encoder['name']}, {encoder['spatial_dims']}D, {encoder['in_channels']} channels",
        "row": start["tags"].get("row", ""),
        "method": "+".join(_named(settings, "method.name")) if begun else SCRATCH,
        "variant": "+".join(_named(settings, "method.variant")) if begun else "",
        "task": task["name"] if task else "",
        "seed": start["tags"].get("seed") or str(card["seed"]),
        "recipe": ", ".join(str(recipe.get("name")) for recipe in _several(card["recipe"])),
        "digest": card["digest"],
        "parameters": f"{count:,}",
    }
    return {name: value for name, value in told.items() if value}


def _last_loss(run: Path) -> tuple[float, int, int] | None:
    """Return the last loss of a run's history, its time and its step; None for an encoder that was not trained."""
    last = None
    for step, line in Once().new(Tail(run / HISTORY).lines()) if (run / HISTORY).exists() else ():
        if "loss" in line:
            last = float(line["loss"]), int(line.get(TIME, 0)), step
    return last


def _named(settings: Mapping[str, str], field: str) -> list[str]:
    """Return a field of the method, or of the method of each stage."""
    return [value for name, value in settings.items() if name == field or name.endswith(f".{field}")]


def _card(
    run: Path,
    part: str,
    card: Mapping[str, Any],
    told: Mapping[str, str],
    scores: Mapping[str, float],
    sets: Sequence[Mapping[str, Any]],
    start: Mapping[str, Any],
) -> Iterator[str]:
    tags = start["tags"]
    yield from (
        f"# {start['name']}",
        "",
        f"The {part} of run `{run.name}`, in the experiment `{start['experiment']}`.",
        "",
    )
    yield from (f"- {name}: {value}" for name, value in told.items() if name != "digest")
    for stage in card.get("stages") or []:
        budget = {name: value for name, value in stage["budget"].items() if value is not None}
        yield f"- stage {stage['name']}: {', '.join(f'{name} {value}' for name, value in budget.items())}"
    if names := card.get("class_names"):
        yield f"- outputs: {', '.join(names)}"
    yield from ("", "## Data", "")
    yield from dict.fromkeys(f"- {one['name']}, digest `{one['digest'][:16]}`" for one in sets)
    yield from ("", "## Scores", "")
    yield from _score_lines(run, scores) if scores else _health_lines(run)
    yield from ("", "## Use", "", f"`{PARTS[part][0]}` holds the weights, `{PARTS[part][1]}` all of their settings.")
    yield from ("", "## Licence", "", LICENCE, "", "## Made by", "")
    yield f"- command: `{tags.get('mlflow.source.name', 'unknown')}`"
    yield f"- commit: `{tags.get('git_commit', 'unknown')}`"
    yield ""


def _score_lines(run: Path, scores: Mapping[str, float]) -> Iterator[str]:
    yield from ("| metric | value | 95 % interval over patients |", "|---|---|---|")
    for name, value in scores.items():
        yield f"| {name} | {value:.4f} | {_interval(run, name, value)} |"
    yield ""
    yield "Of one run: other seeds and other patients give other scores. Intervals are percentiles of a bootstrap."


def _interval(run: Path, metric: str, value: float) -> str:
    """Return the interval of a run's mean over its patients, by a bootstrap of the patients."""
    patients = case_scores(run / CASES, metric, value)
    if patients is None:
        return "-"
    if len(patients) < LEAST_PATIENTS:
        return f"too few patients ({len(patients)})"
    from scipy import stats  # every worker imports this module, and none draws intervals

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
    yield "A pretraining has no score of its own; fine-tune it, or see `raydiology probe`. Its last measurements:"
    yield ""
    yield from (f"- {name}: {value:.4f}" for name, value in shown.items())


def _several(recipe: Any) -> list[dict[str, Any]]:
    return recipe if isinstance(recipe, list) else [recipe]
