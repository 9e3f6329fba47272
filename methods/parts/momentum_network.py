"""MomentumNetwork: the moving average of an encoder and its projector, which computes targets and keys."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.encoders import Encoder
from methods.parts.flat_map import mean_features
from methods.parts.schedule import value_at
from methods.parts.teacher import Decay, follow, frozen_copy


class MomentumNetwork(nn.Module):
    """It begins as a copy of the trained network. Its batch norm takes statistics of its own."""

    def __init__(self, encoder: Encoder, projector: nn.Module, decay: Decay) -> None:
        super().__init__()
        self.encoder: Encoder = frozen_copy(encoder)
        self.projector = frozen_copy(projector)
        self.decay = decay

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d"]:
        """Return embeddings without gradients."""
        return self.projector(mean_features(self.encoder, images))

    def follow(self, encoder: Encoder, projector: nn.Module, share: float) -> None:
        """Move towards the trained network, with the decay at a share of the budget."""
        decay = value_at(self.decay, share)
        follow(self.encoder, encoder, decay)
        follow(self.projector, projector, decay)
