"""GL-MAE's loss, one crop at a time; gradients come from autograd."""

import torch
from torch import Tensor

from tests.references import mae
from tests.references.dino import scores_of
from tests.references.vit import Weights, blocks, embedded, part


def loss(
    crops: list[Tensor],
    hidden: list[Tensor],
    num_large: int,
    sizes: tuple[int, int, int],
    w: Weights,
    centre: Tensor,
    temperatures: tuple[float, float],
) -> Tensor:
    """Return the loss of crops (b, c, *s) and what of each is hidden; ``sizes``: patch, heads, decoder's heads."""
    side, heads, decoder_heads = sizes
    errors = [
        mae.loss(crop, gone, side, (heads, decoder_heads), w, False, "squared")
        for crop, gone in zip(crops, hidden, strict=True)
    ]
    large, small = torch.stack(errors[:num_large]).mean(), torch.stack(errors[num_large:]).mean()
    terms = []
    for sample in range(len(crops[0])):
        predicted = []
        for crop, gone in zip(crops, hidden, strict=True):
            flags = gone[sample].flatten().tolist()
            tokens = embedded(crop[sample], part(w, "encoder"), side)
            seen = [token for token, flag in zip(tokens, flags, strict=True) if not flag]
            mean = torch.stack(blocks(seen, part(w, "encoder"), heads)).mean(0)
            predicted.append((scores_of(mean, part(w, "head")) / temperatures[0]).log_softmax(0))
        for crop in crops[:num_large]:
            teacher = part(w, "teacher")
            tokens = blocks(embedded(crop[sample], part(teacher, "encoder"), side), part(teacher, "encoder"), heads)
            said = scores_of(torch.stack(tokens).mean(0), part(teacher, "head")).detach()
            code = ((said - centre) / temperatures[1]).softmax(0)
            terms += [-(code @ one) for one in predicted]
    return small + large + torch.stack(terms).mean()
