"""Classification: head and loss of proxy tasks whose answer is one of several labels."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Losses
from methods.parts.precision import Head, full_precision

LEAST = 1e-6  # probability of a label that never comes


def classifier(in_dim: int, hidden_dims: tuple[int, ...], num_classes: int, dropout: float) -> Head:
    """Return linear, ReLU, batch norm and dropout for each hidden layer, then a linear layer.

    Reference: HealthML/self-supervised-3d-tasks @ ecc86ef, ``big_fully``; with torch's epsilon and
    momentum of batch norm instead of Keras' (0.001 and 0.99).
    """
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers += [nn.Linear(in_dim, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Dropout(dropout)]
        in_dim = width
    return Head(*layers, nn.Linear(in_dim, num_classes))


@full_precision()
def classification_losses(
    logits: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    label_smoothing: float = 0.0,
    shares: Float[Tensor, " k"] | None = None,
) -> Losses:
    """Return the mean cross-entropy, and the share of labels predicted correctly.

    ``shares`` is how often each label comes, which is the best constant prediction; None: all equally often.
    """
    found = (logits.detach().argmax(1) == labels).to(logits).mean()
    if shares is None:
        constant = torch.zeros_like(logits[0], requires_grad=False)
    else:
        constant = ((1 - label_smoothing) * shares + label_smoothing / len(shares)).clamp(min=LEAST).log()
    of_constant = F.cross_entropy(constant.detach().expand_as(logits), labels, label_smoothing=label_smoothing)
    return Losses(F.cross_entropy(logits, labels, label_smoothing=label_smoothing), {"accuracy": found}, of_constant)
