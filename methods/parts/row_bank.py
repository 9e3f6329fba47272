"""Row bank: values of all samples of a training by row, of which each rank holds a part in host memory.

The part is a share (``parts/shares.py``) for the rows of ``share``, a slice of all N rows.
"""

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from methods.parts.ranks import own_of, rows_of_all_ranks, total_over_ranks


@torch.no_grad()
def keep(
    bank: Shaped[Tensor, "n *d"], share: slice, rows: Int64[Tensor, " b"], values: Shaped[Tensor, "b *d"]
) -> None:
    """Write the values of the rows that this rank holds, whichever rank has seen them."""
    places = rows_of_all_ranks(rows).to(bank.device) - share.start
    own = (places >= 0) & (places < len(bank))
    bank[places[own]] = rows_of_all_ranks(values).to(bank)[own]


@torch.no_grad()
def look_up(bank: Shaped[Tensor, "n *d"], share: slice, rows: Int64[Tensor, " b"]) -> Shaped[Tensor, "b *d"]:
    """Return the values of this rank's rows, whichever rank holds them, on the device of ``rows``."""
    places = rows_of_all_ranks(rows).to(bank.device) - share.start
    own = ((places >= 0) & (places < len(bank))).view(-1, *[1] * (bank.ndim - 1))
    found = bank[places.clamp(0, len(bank) - 1)] * own
    return own_of(total_over_ranks(found.to(rows.device)))
