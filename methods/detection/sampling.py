"""Sampling: which anchors or proposals of an image the losses look at, drawn by hashing, not from a generator.

A loss has to be the same on any split of a batch over ranks. So an image brings a seed, and the priority of its k-th
candidate is a hash of (seed, k): the numbers that ``SampleRng`` with the seed as its key draws, in tensor arithmetic.
The candidates of highest priority are sampled.

Paper:     Ren et al., "Faster R-CNN", NeurIPS 2015, section 3.1.3.
Reference: open-mmlab/mmdetection 2.x, ``random_sampler.py``. MONAI's ``HardNegativeSampler`` draws from torch's
           generator, whose numbers depend on what else was drawn, and favours hard negatives.
Variants:  none.
Shapes:    N candidates, of which k are sampled.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

# splitmix64, as in data/views/rng.py; torch has no unsigned words, so they are the same bits with a sign.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))


@dataclass(frozen=True)
class Sampling:
    """The k candidates that are sampled, always as many, so that shapes do not depend on values.

    index      their places among the candidates
    positive   whether they are positive
    counts     whether they count at all: where there are too few candidates, the last ones do not
    """

    index: Int64[Tensor, " k"]
    positive: Bool[Tensor, " k"]
    counts: Bool[Tensor, " k"]


def priorities(seed: Int64[Tensor, ""], count: int, first: int = 0) -> Float64[Tensor, " N"]:
    """Return ``count`` numbers in [0, 1) that look drawn at random: those of the counters from ``first`` on."""
    words = torch.arange(first + 1, first + count + 1, device=seed.device) * GOLDEN + seed
    for shift, factor in _ROUNDS:
        words = (words ^ _shifted(words, shift)) * factor
    return _shifted(words, 11).double() * 2.0**-53


def sampled(
    positive: Bool[Tensor, " N"],
    negative: Bool[Tensor, " N"],
    priority: Float64[Tensor, " N"],
    count: int,
    positive_share: float,
) -> Sampling:
    """Sample at most this share of ``count`` positive candidates, and fill up with negative ones."""
    places = min(count, len(positive))
    most = min(int(count * positive_share), places)
    order = torch.where(positive, priority, -1.0).topk(most).indices
    chosen = torch.zeros_like(positive).index_fill(0, order, True) & positive
    rank, index = torch.where(chosen, priority + 2, torch.where(negative, priority, -1.0)).topk(places)
    return Sampling(index, rank >= 2, rank >= 0)


def _shifted(words: Int64[Tensor, " N"], places: int) -> Int64[Tensor, " N"]:
    """Shift words to the right as if they had no sign."""
    return (words >> places) & (2 ** (64 - places) - 1)
