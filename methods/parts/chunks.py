"""Chunks: pass images through a network a few at a time, so that only their activations are held at once.

The outputs are joined again, so that heads and losses see all images. Value and gradient equal those of one pass,
provided that the network treats each image on its own, which a network with batch norm does not. The backward pass
computes the activations again, chunk by chunk, and adds up the gradients.

Dropout and drop-path draw separate masks for each chunk: not the masks of one pass, but of the same distribution.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from methods.parts.sync_batch_norm import BatchNorm


class InChunks(nn.Module):
    """A network that takes its images in ``num_chunks`` chunks."""

    num_chunks: int = 1


Outputs = TypeVar("Outputs", Tensor, list[Tensor])


def in_chunks(
    network: nn.Module, function: Callable[[Tensor], Outputs], images: Float[Tensor, "n c *s"], num_chunks: int
) -> Outputs:
    """Return a function's outputs when the images pass ``network`` in ``num_chunks`` chunks.

    In evaluation mode without gradients, no activations are held, and the images pass all at once.
    """
    judged = not (network.training or torch.is_grad_enabled())
    if num_chunks == 1 or judged:
        return function(images)
    outputs = [_pass(network, function, chunk) for chunk in images.chunk(num_chunks)]
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(outputs)  # pyright: ignore[reportArgumentType]  # all of one type
    return [torch.cat(maps) for maps in zip(*outputs, strict=True)]


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
def _statistics_kept(network: nn.Module) -> Generator[None]:
    """Leave running statistics unchanged: a chunk that is computed again has already been counted."""
    norms = [norm for norm in network.modules() if isinstance(norm, BatchNorm) and norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not restored after the pass: torch keeps the buffers for the gradient, and refuses changed ones.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
