"""The variable dimension transform: the colours of a photograph become neighbouring slices of a volume.

Paper:     Zhang et al., SVD-Net (seed 003), section III-A: (3, H, W) is reshaped to (1, 3, H, W).
Reference: urmagicsmine/CSPR @ 390a413: the planes of each image are put in a random order before.
Shapes:    B photographs, H rows, W columns.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.views.rng import SampleRng

COLOURS = 3


def slices_of_colours(
    photographs: Float[Tensor, "b 3 h w"], order: Int[np.ndarray, "b 3"] | None = None
) -> Float[Tensor, "b 1 3 h w"]:
    """Return the colours as slices: red, green and blue, or, slice by slice, the colours that ``order`` names."""
    if order is None:
        return photographs[:, None]
    index = torch.from_numpy(order).to(photographs.device)
    return photographs.gather(1, index[:, :, None, None].expand_as(photographs))[:, None]


def draw_order(rng: SampleRng) -> Int[np.ndarray, "b 3"]:
    """Draw an order of the colours for each photograph, all six equally often."""
    return rng.uniform(COLOURS).argsort(axis=1)
