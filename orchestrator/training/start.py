"""Start: an encoder begins with the weights of a file, of this project or of another one."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from methods.encoders.layouts import OWN
from methods.encoders.transfer import FittedWeights, Transfer, fitted, fitting_layouts
from orchestrator.config.weights import WeightsFile
from orchestrator.training.checkpoint import CheckpointError, read_weights, refuse_unmatched


def begin(encoder: nn.Module, start: WeightsFile) -> Transfer:
    """Load the weights that an encoder starts from; say what was taken.

    Raises CheckpointError if the file cannot be read, or if anything differs that the rules of a transfer
    (methods/encoders/transfer.py) do not cover.
    """
    found = _fitted(read_weights(Path(start.weights)), start, encoder)
    encoder.load_state_dict({**encoder.state_dict(), **found.tensors})
    return found.transfer


def transfer_from(start: WeightsFile, encoder: nn.Module) -> Transfer:
    """Return what an encoder, which may be without weights, takes from the file that it starts from; load nothing.

    Raises CheckpointError as ``begin`` does, and for values that are not finite.
    """
    weights = read_weights(Path(start.weights))
    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"weights {Path(start.weights).name}: {key} has values that are not finite; take weights of a "
                "training that did not diverge"
            )
    return _fitted({key: value.to("meta") for key, value in weights.items()}, start, encoder).transfer


def _fitted(weights: Mapping[str, Tensor], start: WeightsFile, encoder: nn.Module) -> FittedWeights:
    """Turn weights into the encoder's; a refusal names the layouts that would fit."""
    own, what = encoder.state_dict(), f"weights {Path(start.weights).name}"
    try:
        if (start.layout, start.inflate) == (OWN, None):
            refuse_unmatched(weights, encoder, what)
        return fitted(weights, own, start.layout, start.inflate)
    except ValueError as error:
        said = str(error) if isinstance(error, CheckpointError) else f"{what}: {error}"
        fitting = [layout for layout in fitting_layouts(weights, own, start.inflate) if layout != start.layout]
        hint = f"; it fits start.layout={' or '.join(fitting)}" if fitting else ""
        raise CheckpointError(said + hint) from None
