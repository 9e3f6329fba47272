"""Chunks: images that pass a network a few at a time, so that the activations of only these few are held at once.

The outputs are put together again, so that heads and losses see all images, and value and gradient are those of one
pass: a network may only treat each image on its own, as one with batch norm does not. Activations are computed anew
in the backward pass, chunk by chunk, in which each chunk's gradient is added up.

Dropout and drop-path draw for each chunk on its own: other masks than those of one pass, of the same distribution.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class InChunks(nn.Module):
    """A network whose images pass it in ``num_chunks`` chunks."""

    num_chunks: int = 1


Outputs = TypeVar("Outputs", Tensor, list[Tensor])


def in_chunks(
    network: nn.Module, function: Callable[[Tensor], Outputs], images: Float[Tensor, "n c *s"], num_chunks: int
) -> Outputs:
    """Return what a function of ``network`` makes of images that pass it in so many chunks.

    What is judged, in evaluation mode and without gradients, holds no activations and passes whole.
    """
    judged = not (network.training or torch.is_grad_enabled())
    if num_chunks == 1 or judged:
        return function(images)
    outputs = [_pass(network, function, chunk) for chunk in images.chunk(num_chunks)]
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(outputs)  # pyright: ignore[reportReturnType, reportArgumentType]  # all are what the first is
    return [torch.cat(maps) for maps in zip(*outputs, strict=True)]  # pyright: ignore[reportReturnType]


def _pass(network: nn.Module, function: Callable[[Tensor], Outputs], chunk: Tensor) -> Outputs:
    """Pass one chunk, and hold none of its activations until its backward pass."""
    if not torch.is_grad_enabled():
        return function(chunk)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(network)

    passed = checkpoint(function, chunk, use_reentrant=False, context_fn=contexts)
    assert passed is not None
    return passed


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: those of a chunk that is computed anew count already."""
    norms = [norm for norm in network.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not put back after the pass: torch holds the buffers for the gradient, and refuses those that were changed.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
