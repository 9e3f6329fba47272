"""Checkpoint: the state that a restart needs, and the exported encoder for other tools.

A checkpoint is a folder: ``method.safetensors`` (weights and buffers), ``optimiser.pt`` (read back with
``weights_only``), ``encoder.safetensors`` with ``encoder.json``, and ``state.json``: how far training is, the steps
since the checkpoint before it, and the sizes of the other files, so that a truncated file is noticed. No file can
run code when it is read.
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.order import ORDER_VERSION
from methods.base import Method
from methods.encoders.transfer import Transfer
from methods.parts.shares import set_share
from orchestrator.training.resume import STATE
from orchestrator.training.world import World

METHOD, OPTIMISER = "method.safetensors", "optimiser.pt"
ENCODER, ENCODER_CARD = "encoder.safetensors", "encoder.json"
STATE_DICT = "state_dict"
# Where nnssl, OpenMind and an export to nnU-Net leave the weights of a folder with adaptation_plan.json.
OF_NNSSL = ("checkpoint_final.pth", "fold_all/checkpoint_final.pth", "nnunet.pth")


class CheckpointError(ValueError):
    """A checkpoint or encoder does not fit; the message names the value found, the value expected, and a remedy."""


@dataclass(frozen=True)
class State:
    """How far training is: steps done, the metrics of the best evaluation, and the step after which it was taken.

    Random numbers need no state: views are keyed by sample and epoch, and the generator for drop-path and the like is
    seeded anew at each step.
    """

    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0


@dataclass(frozen=True)
class Stream:
    """The sample stream that a checkpoint belongs to; continuing on another would repeat or skip samples."""

    digest: str
    seed: int
    batch_size: int
    order_version: int = ORDER_VERSION


def save(
    folder: Path,
    weights: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    state: State,
    stream: Stream,
    history: Sequence[dict[str, Any]] = (),
) -> None:
    """Write a checkpoint into a folder that holds nothing but other files of the same checkpoint."""
    save_file(_contiguous(weights), folder / METHOD)
    torch.save(optimiser.state_dict(), folder / OPTIMISER)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    card = {"state": asdict(state), "stream": asdict(stream), "history": list(history), "files": sizes}
    (folder / STATE).write_text(json.dumps(card))


def whole_state(method: Method, world: World) -> dict[str, Tensor]:
    """Return a method's weights and buffers; of shares, the parts of all ranks in the order of the ranks."""
    state = dict(method.state_dict())
    for name in method.shares:
        parts = [state[name].cpu()] * world.size
        if world.size > 1:
            dist.all_gather_object(parts, state[name].cpu())
        state[name] = torch.cat(parts)
    return state


def _load_whole(method: Method, state: dict[str, Tensor], world: World) -> None:
    """Load weights and buffers; of shares, this rank's part, whatever the number of ranks that saved them."""
    for name in method.shares:
        own = method.get_buffer(name)
        part = state[name].tensor_split(world.size)[world.rank].to(own)
        set_share(method, name, part.clone())
        state[name] = part
    method.load_state_dict(state)


def restore(folder: Path, method: Method, optimiser: torch.optim.Optimizer, stream: Stream, world: World) -> State:
    """Load a checkpoint into a method and its optimiser; raise CheckpointError if the stream differs.

    The optimiser keeps its own settings, which differ from the checkpoint's where a population has changed them.
    """
    saved = json.loads((folder / STATE).read_text())
    if saved["stream"] != asdict(stream):
        differing = [name for name, value in asdict(stream).items() if saved["stream"].get(name) != value]
        raise CheckpointError(
            f"checkpoint {folder.name}: saved for {_listed(saved['stream'], differing)}, this run has "
            f"{_listed(asdict(stream), differing)}; give the run another name or home, or restore the old shards"
        )
    _load_whole(method, load_file(folder / METHOD), world)
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimiser.param_groups]
    optimiser.load_state_dict(_read_optimiser(folder))
    for group, settings in zip(optimiser.param_groups, own, strict=True):
        group.update(settings)
    return State(**saved["state"])


def _read_optimiser(folder: Path) -> dict[str, Any]:
    """Read an optimiser's state onto the CPU: the GPU that wrote it may be missing, or belong to another rank."""
    return torch.load(folder / OPTIMISER, map_location="cpu", weights_only=True)


def export_encoder(folder: Path, encoder: nn.Module, card: dict[str, Any]) -> None:
    """Write the encoder's weights under its own names, and a card that describes them.

    ``card`` holds at least the encoder's config; the recipe and digest tell a later user how to prepare scans.
    """
    save_file(_contiguous(encoder.state_dict()), folder / ENCODER)
    full = {"raydiology": _own_version(), "torch": torch.__version__, **card}
    (folder / ENCODER_CARD).write_text(json.dumps(full, indent=2, sort_keys=True))


def _own_version() -> str:
    """Return the installed version, or pyproject's: in a job our packages are uploaded, not installed."""
    try:
        return version("raydiology")
    except PackageNotFoundError:
        return tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]


def weights_file(path: Path) -> Path:
    """Return the file of weights that a path names: itself, or that of an export's or a run's folder.

    Raises CheckpointError if there is none.
    """
    places = (path, path / ENCODER, path / "encoder" / ENCODER, *(path / name for name in OF_NNSSL))
    found = [file for file in places if file.is_file()]
    if not found:
        raise CheckpointError(
            f"encoder {path.name}: no {ENCODER} there; expected a file of weights, or the folder of a run or export"
        )
    return found[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights from a file or folder onto the CPU: tensors by name, alone or as an entry of a checkpoint.

    Raises CheckpointError if it holds none, or more than tensors and plain values.
    """
    file = weights_file(path)
    try:
        found = load_file(file) if file.suffix == ".safetensors" else _read_plain(file)
    except Exception as error:  # noqa: BLE001 (a damaged pickle may raise anything)
        raise CheckpointError(
            f"weights {file.name}: cannot be read ({_reason(error)}); expected a whole safetensors file, or a file "
            "of torch that holds nothing but tensors and plain values"
        ) from None
    return _state_dict(found, file.name)


def _read_plain(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, without torch's advice to read it all the same."""
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else " ".join(str(error).split())
    text = text.rpartition("WeightsUnpickler error: ")[2]
    return text.partition(" Please use")[0][:200] or type(error).__name__


def _state_dict(found: Any, name: str) -> dict[str, Tensor]:
    """Return the tensors by name that a file holds at its top, or in one of its entries."""
    if _is_state_dict(found):
        return dict(found)
    entries = dict(found) if isinstance(found, Mapping) else {}
    nested = {key: value for key, value in entries.items() if _is_state_dict(value)}
    if len(nested) == 1 or STATE_DICT in nested:
        return dict(nested.get(STATE_DICT) or next(iter(nested.values())))
    if nested:
        raise CheckpointError(
            f"weights {name}: {len(nested)} entries hold tensors by name ({', '.join(map(str, nested))}), and none "
            f"is called {STATE_DICT}; save the one that is meant in a file of its own"
        )
    kinds = ", ".join(f"{key}: {type(value).__name__}" for key, value in list(entries.items())[:3])
    raise CheckpointError(
        f"weights {name}: no tensors by name, but {f'entries {kinds}' if entries else type(found).__name__}; "
        f"expected a state dict, or a checkpoint that holds one as {STATE_DICT}"
    )


def _is_state_dict(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and len(found) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())
    )


def load_encoder(path: Path, encoder: nn.Module, part: str = "") -> Transfer:
    """Load exported weights, or those of a part, into an encoder; say what was taken.

    Raises CheckpointError if a key is missing, left or of another shape.
    """
    weights, prefix = read_weights(path), f"{part}." if part else ""
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    refuse_unmatched(weights, encoder, f"encoder {path.name}")
    encoder.load_state_dict(weights)
    return Transfer(tuple(weights))


def refuse_unmatched(weights: Mapping[str, Tensor], encoder: nn.Module, what: str) -> None:
    """Raise CheckpointError with the keys that weights and an encoder do not share, or share in another shape."""
    own = encoder.state_dict()
    differing = {key for key in weights.keys() & own.keys() if weights[key].shape != own[key].shape}
    if unmatched := sorted((weights.keys() ^ own.keys()) | differing):
        shown = ", ".join(unmatched[:5]) + (", ..." if len(unmatched) > 5 else "")
        raise CheckpointError(
            f"{what}: {len(unmatched)} of {len(own)} keys do not match ({shown}); use the encoder config of "
            f"{ENCODER_CARD} beside the weights"
        )


def _contiguous(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def _listed(fields: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name}={fields.get(name)}" for name in names)
