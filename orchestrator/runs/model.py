"""Model: a run's encoder or network as MLflow lists it: its weights, its signature and its card.

All is read from the run's folder, so that a run which an older version has done has a model too.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.shards.writer import write_atomically
from methods.encoders import ENCODERS
from orchestrator.config.parts import EncoderConfig
from orchestrator.history import HISTORY, TIME, Once, Tail
from orchestrator.runs.card import SCRATCH, TrainedPart, markdown, of_the_whole, told_of
from orchestrator.runs.export import SCRIPT
from orchestrator.runs.export_monai import loading_script
from orchestrator.tracking.model_record import ModelRecord, TensorShape
from orchestrator.training.outline import outline_of

CARD = "card.md"


def record_of(run: Path, scores: Mapping[str, float]) -> ModelRecord | None:
    """Write the card of a run's model beside its weights and return its record; None without weights or outbox.

    ``scores`` are those of the run's best checkpoint.
    """
    trained = TrainedPart.of(run)
    if trained is None or "key" not in trained.start or not trained.sets:
        return None  # of the last two: its records were deleted while it ran, so MLflow hears no more of it
    told, card = told_of(trained), trained.card
    text = markdown(trained, scores, [_use(trained)])
    write_atomically(trained.folder / CARD, text)
    with suppress(ValueError):  # MONAI has no class for it
        write_atomically(trained.folder / SCRIPT, loading_script(trained))
    inputs, outputs = signature_of(card)
    row = trained.start["tags"].get("row") or told.get("method") or told["encoder"]
    began, first = trained.settings.get("pretrained", SCRATCH), trained.sets[0]
    return ModelRecord(
        name=f"{row}, seed {told['seed']}, {trained.part}",
        kind=trained.part,
        key=trained.start["key"],
        files=tuple(sorted(path for path in trained.folder.iterdir() if path.is_file())),
        card=text,
        params=told,
        scores=of_the_whole(scores),
        loss=_last_loss(run) if trained.part == "encoder" else None,
        dataset=(first["name"], first["digest"]),
        inputs=inputs,
        outputs=outputs,
        start=None if began == SCRATCH else began,
    )


def _use(trained: TrainedPart) -> str:
    return (
        f"`{trained.weights.name}` holds the weights, `{trained.description.name}` all of their settings. "
        "`raydiology export` writes them for MONAI, nnU-Net and torchvision, each with the lines that load them."
    )


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


def _last_loss(run: Path) -> tuple[float, int, int] | None:
    """Return the last loss of a run's history, its time and its step; None for an encoder that was not trained."""
    last = None
    for step, line in Once().new(Tail(run / HISTORY).lines()) if (run / HISTORY).exists() else ():
        if "loss" in line:
            last = float(line["loss"]), int(line.get(TIME, 0)), step
    return last
