"""Prototypes: vectors on the unit sphere, to which embeddings are compared."""

import torch
from torch.nn import functional as F

from methods.parts.precision import LinearHead


class Prototypes(LinearHead):
    """A linear layer without bias whose rows are the prototypes: it returns an embedding's score for each.

    Reference: facebookresearch/swav @ 04b8f43: torch's initial weights of a linear layer, normalised.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__(dim, num_prototypes, bias=False)
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring each prototype to length 1."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
