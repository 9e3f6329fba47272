"""Class numbers: from the numbers of classes, as shards hold them, to their indices among those that are learnt."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from data.views.batch import Batch


def held(batch: Batch, numbers: Int64[Tensor, " k"], what: str) -> Bool[Tensor, "b k"]:
    """Tell which classes each sample has; ``what`` names who asks. Raises ValueError where none were read."""
    if batch.classes is None:
        raise ValueError(
            f"{what}: the {len(batch)} samples of a batch have no classes; expected some for each; ingest with "
            "classes, or select samples that have them"
        )
    return (batch.classes[:, :, None] == numbers).any(1)


def single(has: Bool[Tensor, "b k"], batch: Batch, what: str, remedy: str = "") -> Int64[Tensor, " b"]:
    """Return the index of each sample's class; raise ValueError for a sample that does not have exactly one."""
    counts = has.sum(1)
    if not bool((counts == 1).all()):
        odd = int((counts != 1).int().argmax())
        raise ValueError(
            f"{what}: sample {batch.sample_ids[odd]} has {int(counts[odd])} classes, expected 1; {remedy}ingest with "
            "one class per sample"
        )
    return has.int().argmax(1)


def class_shares(classes: Int[np.ndarray, "n m"], numbers: Sequence[int]) -> Float[np.ndarray, " k"]:
    """Return the share of samples that have each class; ``classes`` is padded with -1."""
    return (classes[:, :, None] == np.array(numbers)).any(1).mean(0)


def check_single(
    classes: Int[np.ndarray, "n m"], numbers: Sequence[int], what: str, used: str = "", remedy: str = ""
) -> None:
    """Raise ValueError where a sample does not have exactly one class; ``classes`` is padded with -1.

    ``used`` says what the samples are used for.
    """
    has = (classes[:, :, None] == np.array(numbers)).any(1)
    if odd := int((has.sum(1) != 1).sum()):
        raise ValueError(
            f"{what}: {odd} of the {len(has)} samples {used}do not have exactly 1 class; {remedy}ingest with one "
            "class per sample"
        )
