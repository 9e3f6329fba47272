"""EmbeddingQueue: the embeddings of the last steps, so that a small batch is compared with more than itself.

Paper:     Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
           section 4.1.
Reference: facebookresearch/swav @ 04b8f43, where each rank holds and reads a queue of its own embeddings. Here all
           ranks hold the same queue, of all ranks' embeddings, and each reads its part of it: so k ranks equal one.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.parts.ranks import rows_of_all_ranks, share_of


class EmbeddingQueue(nn.Module):
    """The last ``length`` embeddings of each of v crops, the newest first; it is read once it is full."""

    rows: Tensor
    filled: Tensor

    def __init__(self, num_crops: int, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(num_crops, length, dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @property
    def num_read(self) -> int:
        """How many embeddings of each crop are read: all of them, once the queue is full."""
        length = self.rows.shape[1]
        # A dry run, whose tensors have no values, wants to know what a full queue takes.
        return length if self.filled.is_meta or int(self.filled) == length else 0

    def own_part(self) -> Float[Tensor, "v l d"]:
        """Return this rank's part of what is read."""
        return self.rows[:, share_of(self.num_read)]

    @torch.no_grad()
    def push(self, embeddings: Float[Tensor, "v b d"]) -> None:
        """Add the embeddings of all ranks, and drop the oldest."""
        everyone = rows_of_all_ranks(embeddings.transpose(0, 1)).transpose(0, 1).to(self.rows)
        self.rows.copy_(torch.cat([everyone, self.rows], dim=1)[:, : self.rows.shape[1]])
        self.filled.add_(everyone.shape[1]).clamp_(max=self.rows.shape[1])
