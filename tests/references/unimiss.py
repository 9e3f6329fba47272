"""UniMiSS' and USST's losses, one sample, view, slice and term at a time; gradients come from autograd."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.references.dino import scores_of
from tests.references.vit import Weights

Tokens = Callable[[Tensor], Tensor]


def scores(image: Tensor, tokens: Tokens, head: Weights) -> Tensor:
    """Return the scores of one image or volume (c, *s) by its class token."""
    return scores_of(tokens(image[None])[0], head)


def mean_of_slices(volume: Tensor, tokens: Tokens, head: Weights) -> Tensor:
    """Return the mean of the scores of a volume's slices (c, d, h, w), each seen alone."""
    return torch.stack([scores(volume[:, depth], tokens, head) for depth in range(volume.shape[1])]).mean(0)


def term(
    predicted: Sequence[Tensor], told: Sequence[Tensor], centre: Tensor, temperatures: tuple[float, float]
) -> Tensor:
    """Return the mean cross-entropy of each view's code with what every other view predicts."""
    found = []
    for view, said in enumerate(told):
        code = ((said - centre) / temperatures[1]).softmax(0).detach()
        for other, guess in enumerate(predicted):
            if other != view:
                found.append(-(code @ (guess / temperatures[0]).log_softmax(0)))
    return torch.stack(found).mean()


def unimiss(
    views: list[Tensor],
    student: tuple[Tokens, Weights],
    teacher: tuple[Tokens, Weights],
    centre: Tensor,
    temperatures: tuple[float, float],
) -> Tensor:
    """Return the loss of views (b, c, *s): four terms of volumes and slices, or one of images."""
    kinds = [scores] if views[0].ndim == 4 else [scores, mean_of_slices]
    total = torch.zeros((), dtype=torch.float64)
    for sample in range(len(views[0])):
        for predicts in kinds:
            for tells in kinds:
                guesses = [predicts(view[sample], *student) for view in views]
                told = [tells(view[sample], *teacher) for view in views]
                total = total + term(guesses, told, centre, temperatures) / len(views[0])
    return total


def usst(
    kinds: list[list[Tensor]],
    student: tuple[Tokens, Weights],
    teacher: tuple[Tokens, Weights],
    centre: Tensor,
    temperatures: tuple[float, float],
) -> Tensor:
    """Return the loss of views of samples, and of views of their slices."""
    total = torch.zeros((), dtype=torch.float64)
    for views in kinds:
        for sample in range(len(views[0])):
            guesses = [scores(view[sample], *student) for view in views]
            told = [scores(view[sample], *teacher) for view in views]
            total = total + term(guesses, told, centre, temperatures) / len(views[0])
    return total
