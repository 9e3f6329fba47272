"""Contrast: tell a sample's own key among those of other samples, by cosines divided by a temperature (InfoNCE).

Paper:     Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018.
Shapes:    B samples of a rank, N samples of all ranks, K keys of earlier steps, d dimensions; all of length 1.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from methods.parts.precision import full_precision


@full_precision()
def contrast_loss(logits: Float[Tensor, "b m"], own: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of finding one's own among m candidates."""
    return F.cross_entropy(logits, own)


@full_precision()
def batch_logits(q: Float[Tensor, "b d"], keys: Float[Tensor, "n d"], temperature: float) -> Float[Tensor, "b n"]:
    """Compare each query with the keys of all samples of the batch; its own key is among them."""
    return q @ keys.T / temperature


@full_precision()
def queue_logits(
    q: Float[Tensor, "b d"], own: Float[Tensor, "b d"], queue: Float[Tensor, "k d"], temperature: float
) -> Float[Tensor, "b m"]:
    """Compare each query with its own key, which comes first, and with those of earlier steps (m = 1 + k)."""
    return torch.cat([(q * own).sum(1, keepdim=True), q @ queue.to(q).T], dim=1) / temperature


def found_part(logits: Float[Tensor, "b m"], own: Int64[Tensor, " b"]) -> dict[str, Tensor]:
    """Return how often the candidate with the highest logit is one's own."""
    return {"accuracy": (logits.detach().argmax(1) == own).to(logits).mean()}
