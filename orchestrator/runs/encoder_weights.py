"""Encoder weights: of a pretraining, or of the encoder inside a fine-tuned network, under the encoder's names."""

from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from methods.encoders import ENCODERS, Encoder
from orchestrator.runs.card import TrainedPart
from orchestrator.training.checkpoint import refuse_unmatched
from orchestrator.training.outline import outline_of

INSIDE = "encoder."


def encoder_of(trained: TrainedPart) -> tuple[Encoder, dict[str, Tensor]]:
    """Return an encoder without weights, to be read, and its weights; raise ValueError where they do not match."""
    kind: Any = ENCODERS[trained.card["encoder"]["name"]]
    encoder = outline_of(kind.Config.model_validate(trained.card["encoder"]))
    weights = load_file(trained.weights)
    if trained.part != "encoder":
        weights = {key.removeprefix(INSIDE): value for key, value in weights.items() if key.startswith(INSIDE)}
    refuse_unmatched(weights, encoder, f"run {trained.run.name}, its encoder")
    return encoder, weights
