"""The Universal Model's losses, in torch float64; what trains the encoder has the other sign of one of them."""

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def entropy(features: Tensor, labels: list[int], w: Weights, name: str) -> Tensor:
    """Return the mean cross-entropy of a linear head."""
    logits = features @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    return torch.stack([torch.logsumexp(row, 0) - row[k] for row, k in zip(logits, labels, strict=True)]).mean()


def losses(
    restored: Tensor, last: Tensor, whole: Tensor, labels: tuple[list[int], list[int]], w: Weights
) -> tuple[Tensor, Tensor]:
    """Return what the heads minimise, and what the encoder and the decoder do; ``labels``: scales and modalities."""
    features = torch.stack([image.flatten(1).mean(1) for image in last])
    error = ((1 / (1 + torch.exp(-restored)) - whole) ** 2).mean()
    scale = entropy(features, labels[0], w, "scale_head")
    modality = entropy(features, labels[1], w, "modality_head")
    return error + 0.3 * scale + 0.2 * modality, error + 0.3 * scale - 0.2 * modality
