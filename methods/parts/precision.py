"""Precision: what computes in float32 although a training runs under autocast: heads and losses.

Under autocast each layer casts its own inputs, so that a cast before it changes nothing: autocast has to be off.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

DEVICES = ("cpu", "cuda")


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch autocast off; as a decorator, for a whole function."""
    with ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 where they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class InFloat32(nn.Module):
    """Mixed into a module of one input, has it compute at least in float32, also under autocast."""

    @full_precision()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(at_least_float32(x))


class Head(InFloat32, nn.Sequential):
    """Layers one after the other that turn features into embeddings, logits or predictions."""


class LinearHead(InFloat32, nn.Linear):
    """A head of one linear layer."""


def keep_in_float32(layer: nn.Module) -> None:
    """Have a layer that others have built compute as ``InFloat32`` does; keys and weights stay the same."""
    kind = type(layer)
    layer.__class__ = type(kind.__name__, (InFloat32, kind), {})
