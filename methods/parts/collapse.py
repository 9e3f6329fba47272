"""Collapse: do the outputs of a batch still differ? (Konieczkowicz, AGH 2024, eq. 4.3)"""

from math import sqrt

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def collapse_coefficient(p: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return 1 where all outputs are alike, 0 where they are spread over the unit sphere.

    The standard deviation over the batch is the unbiased one, torch's default, as in lightly's SimSiam example; so
    a well-spread small batch does not count as slightly collapsed.
    """
    spread = F.normalize(p, dim=1).std(dim=0).mean()
    return (1 - sqrt(p.shape[1]) * spread).clamp(min=0)
