"""MAE's loss, one sample, patch and token at a time; gradients come from autograd."""

import torch
from torch import Tensor

from tests.references.vit import Weights, blocks, decoded, embedded, part, patches_of


def loss(
    crops: Tensor, hidden: Tensor, side: int, heads: tuple[int, int], w: Weights, normalise: bool, distance: str
) -> Tensor:
    """Return the mean error over hidden patches; ``heads`` of encoder and decoder."""
    errors = []
    for image, gone in zip(crops, hidden, strict=True):
        flags = gone.flatten().tolist()
        tokens = embedded(image, part(w, "encoder"), side)
        visible = [token for token, flag in zip(tokens, flags, strict=True) if not flag]
        encoded = blocks(visible, part(w, "encoder"), heads[0])
        predictions = decoded(encoded, flags, part(w, "decoder"), tuple(gone.shape), heads[1])
        for predicted, patch, flag in zip(predictions, patches_of(image, side), flags, strict=True):
            if not flag:
                continue
            wanted = patch
            if normalise:
                spread = (patch - patch.mean()).square().sum() / (len(patch) - 1)
                wanted = (patch - patch.mean()) / (spread + 1e-6).sqrt()
            difference = predicted - wanted
            errors.append((difference**2 if distance == "squared" else difference.abs()).mean())
    return torch.stack(errors).mean()
