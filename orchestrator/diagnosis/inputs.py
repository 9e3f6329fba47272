"""Inputs: causes that lie in the voxels and the views that a training is fed."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orchestrator.diagnosis.cause import Cause, share
from orchestrator.diagnosis.look import SecondLook

EMPTY = 0.5  # share of samples or crops
IDENTICAL = 0.9  # share of pairs
FLAT = 0.01  # deviation within a crop, as a share of that over all crops
AT_THE_TOP = 0.5  # share of voxels
OFF_CENTRE, LARGE = 30.0, 30.0  # |mean| / deviation, and deviation, of a batch's voxels
QUARANTINED = 0.2
WINDOW = "ingest again with a recipe whose window holds these scans' values"


def causes(look: SecondLook) -> Iterator[Cause]:
    """Yield what is wrong with the samples of the first batch and their views."""
    yield from _quarantined(look)
    samples = [look.batch.sample(index) for index in range(len(look.batch))]
    constant = sum(float(one.amax() - one.amin()) == 0 for one in samples)
    if constant >= EMPTY * len(samples):
        yield Cause(
            "constant voxels",
            f"{constant} of the first {len(samples)} samples have the same value in every voxel "
            f"({float(samples[0].flatten()[0]):.4g} in the first); expected none or few",
            WINDOW,
        )
        return
    yield from _saturated(samples)
    yield from _empty(look)
    yield from _alike(look)
    yield from _scaled(look.views.images[0])


def _quarantined(look: SecondLook) -> Iterator[Cause]:
    for shards, _ in look.rebuilt.shards:
        found, bad = shards.counts.get("studies_found", 0), shards.counts.get("studies_quarantined", 0)
        if bad > QUARANTINED * found:
            yield Cause(
                "quarantine",
                f"{bad} of {found} studies were left out when the shards were written; expected below "
                f"{share(QUARANTINED, 1)}",
                "read quarantine.jsonl beside the shards: it says why, and what to do",
            )


def _saturated(samples: list[Float[Tensor, "..."]]) -> Iterator[Cause]:
    top = max(float(one.amax()) for one in samples)
    voxels = sum(one.numel() for one in samples)
    at_top = sum(int((one == top).sum()) for one in samples)
    if at_top > AT_THE_TOP * voxels:
        yield Cause(
            "window below the data",
            f"{share(at_top, voxels)} of the voxels have the highest value, {top:.4g}; expected below "
            f"{share(AT_THE_TOP, 1)}",
            WINDOW,
        )


def _empty(look: SecondLook) -> Iterator[Cause]:
    flat = torch.cat([_is_flat(image) for image in look.views.images])
    if flat.double().mean() > EMPTY:
        yield Cause(
            "empty crops",
            f"{share(int(flat.sum()), len(flat))} of the first {len(flat)} views show nothing but one value; "
            f"expected below {share(EMPTY, 1)}",
            "ingest with a recipe that crops to the body, or cut larger crops",
        )


def _is_flat(images: Float[Tensor, "b c *s"]) -> Bool[Tensor, " b"]:
    overall = images.double().std()
    return images.double().flatten(1).std(1) <= FLAT * overall


def _alike(look: SecondLook) -> Iterator[Cause]:
    if not look.rebuilt.begun.positives:
        return
    first, second = look.views.images[:2]
    if first.shape != second.shape:
        return
    same = (first - second).abs().flatten(1).amax(1) <= 1e-6
    if same.double().mean() >= IDENTICAL:
        yield Cause(
            "identical views",
            f"{int(same.sum())} of {len(same)} positive pairs are the same voxels; expected none or few, or there is "
            "nothing to be invariant to",
            "lower the upper bound of method.crops.iou, and leave method.augment at its default",
        )


def _scaled(images: Float[Tensor, "b c *s"]) -> Iterator[Cause]:
    values = images.double()
    mean, deviation = float(values.mean()), float(values.std())
    if not torch.isfinite(values).all():
        yield Cause("voxels that are no numbers", "the first views hold NaN or infinity; expected none", WINDOW)
    elif deviation > 0 and (abs(mean) > OFF_CENTRE * deviation or deviation > LARGE):
        yield Cause(
            "no normalisation",
            f"the voxels of the first views have mean {mean:.4g} and deviation {deviation:.3g}; expected both near 1 "
            "or below",
            "ingest with a recipe that scales intensities to [0, 1], or standardises them",
        )
