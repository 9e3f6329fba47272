"""Precision: heads and losses compute in float32 even when training runs under autocast.

Under autocast each layer casts its own inputs, so an earlier cast has no effect: autocast has to be off.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

DEVICES = ("cpu", "cuda")


@contextmanager
def full_precision() -> Generator[None]:
    """Switch autocast off for a block, or, as a decorator, for a whole function."""
    with ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32; float64 values stay float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class InFloat32(nn.Module):
    """Mixin by which a module of one input computes at least in float32, even under autocast."""

    @full_precision()
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(at_least_float32(input))


class Head(InFloat32, nn.Sequential):
    """A sequence of layers that turns features into embeddings, logits or predictions."""


class LinearHead(InFloat32, nn.Linear):
    """A head that is a single linear layer."""


def keep_in_float32(layer: nn.Module) -> None:
    """Make a layer from another library compute as ``InFloat32`` does; keys and weights stay the same."""
    kind = type(layer)
    layer.__class__ = type(kind.__name__, (InFloat32, kind), {})
