"""Collapse: do the outputs of a batch still differ? (Konieczkowicz, AGH 2024, eq. 4.3)"""

from math import sqrt

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from methods.parts.ranks import rows_of_all_ranks


def collapse_part(p: Float[Tensor, "b d"]) -> dict[str, Tensor]:
    """Return ``collapse`` of the outputs of all ranks together; nothing where there is a single output."""
    everyone = rows_of_all_ranks(p)
    return {"collapse": collapse_coefficient(everyone)} if len(everyone) > 1 else {}


def collapse_coefficient(p: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return 1 where all outputs are alike, 0 where they are spread over the unit sphere.

    The standard deviation over the batch is the unbiased one, torch's default, as in lightly's SimSiam example; so
    a well-spread small batch does not count as slightly collapsed.
    """
    spread = F.normalize(p, dim=1).std(dim=0).mean()
    return (1 - sqrt(p.shape[1]) * spread).clamp(min=0)
