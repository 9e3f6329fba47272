"""Classification: head and loss of proxy tasks whose answer is one of several labels."""

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Losses
from methods.parts.precision import Head, full_precision


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
    logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"], label_smoothing: float = 0.0
) -> Losses:
    """Return the mean cross-entropy, and the share of labels predicted correctly."""
    found = (logits.detach().argmax(1) == labels).to(logits).mean()
    return Losses(F.cross_entropy(logits, labels, label_smoothing=label_smoothing), {"accuracy": found})
