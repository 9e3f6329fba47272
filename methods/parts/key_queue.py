"""Key queue: the keys of earlier steps, which begin as random ones, and what a constant can make of them.

Reference: facebookresearch/moco @ 4397a04, ``builder.py``.
"""

from math import exp

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.parts.embedding_queue import EmbeddingQueue


def key_queue(length: int, dim: int) -> EmbeddingQueue:
    """Return a queue that begins with random keys of length 1."""
    queue = EmbeddingQueue(1, length, dim)
    queue.rows.copy_(F.normalize(torch.randn_like(queue.rows), dim=2))
    return queue


def loss_of_constant(queue: EmbeddingQueue, temperature: float) -> Float[Tensor, ""]:
    """Return the loss of equal embeddings: keys of earlier steps are alike, and orthogonal to the random ones."""
    random = queue.rows.shape[1] - queue.filled
    return torch.log(1 + queue.filled + random * exp(-1 / temperature)).to(queue.rows)
