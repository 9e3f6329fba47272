"""Sizes: the bytes of a checkpoint's files, computed from the sizes of weights alone."""

from torch import nn

from methods.base import Method
from methods.downstream.base import Task
from orchestrator.config.optimiser import Optimiser
from orchestrator.runs.memory import COPIES
from orchestrator.runs.network import NETWORK
from orchestrator.training.checkpoint import ENCODER, METHOD, OPTIMISER


def checkpoint_files(method: Method, optimiser: Optimiser) -> dict[str, int]:
    """Return the bytes of a checkpoint's large files by name; the method may be without weights.

    Headers and cards, of some kB each, are left out.
    """
    remembered = COPIES[optimiser.name] + optimiser.amsgrad - 2  # weight and gradient are not the optimiser's
    trainable = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    files = {
        METHOD: _bytes(method),
        OPTIMISER: 4 * remembered * trainable,
        ENCODER: _bytes(method.encoder),
    }
    if isinstance(method, Task):
        files[NETWORK] = _bytes(method.network)
    return files


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())
