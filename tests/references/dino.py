"""DINO's loss on averaged images, one sample and crop at a time; gradients come from autograd."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.references.vit import Weights, linear, part


def scores(image: Tensor, w: Weights) -> Tensor:
    """Return a head's scores of one image, whose features are the means of its channels."""
    return scores_of(image.flatten(1).mean(1), w)


def scores_of(x: Tensor, w: Weights) -> Tensor:
    """Return a head's scores of a feature."""
    for layer in ("0", "2"):
        x = F.gelu(linear(x, part(w, layer)))
    x = linear(x, part(w, "4"))
    x = x / x.square().sum().sqrt()
    return torch.stack([row @ x / row.square().sum().sqrt() for row in w["6.weight"]])


def loss(
    crops: list[Tensor], num_large: int, student: Weights, teacher: Weights, centre: Tensor, temperatures: tuple
) -> tuple[Tensor, Tensor]:
    """Return the loss, and the mean of the teacher's scores, of crops (b, c, *s), the large ones first."""
    terms, told = [], []
    for sample in range(len(crops[0])):
        predicted = [(scores(crop[sample], student) / temperatures[0]).log_softmax(0) for crop in crops]
        for large in range(num_large):
            said = scores(crops[large][sample], teacher).detach()
            told.append(said)
            code = ((said - centre) / temperatures[1]).softmax(0)
            terms += [-(code @ one) for number, one in enumerate(predicted) if number != large]
    return torch.stack(terms).mean(), torch.stack(told).mean(0)
