"""Targets: the meaning of a segmentation's outputs: classes, one per voxel, or regions, which may overlap.

A target knows the label values to learn (``values``; the i-th is class index i + 1, all other values are 0), the
``names`` in pictures (the background first), the number of outputs per voxel, and the ``shape`` of a unit's counts.
Shapes: B samples, K classes (0 is background), R regions, *s spatial axes (D, H, W) or (H, W).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from data.spelling import did_you_mean
from methods.base import Losses
from methods.downstream.constants import classes_loss_of_constant, regions_loss_of_constant
from methods.downstream.metrics import ConventionName, Scores, count_confusions, score, score_regions
from methods.parts.precision import full_precision


@full_precision()
def dice_ce_loss(
    logits: Float[Tensor, "b k *s"], classes: Int[Tensor, "b *s"], background: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the soft Dice loss (mean over images and classes, with background or not) and the cross-entropy.

    Their sum is MONAI's DiceCELoss(softmax=True, to_onehot_y=True).
    """
    from monai.losses.dice import DiceLoss

    dice = DiceLoss(include_background=background, to_onehot_y=True, softmax=True)
    return dice(logits, classes.unsqueeze(1)), F.cross_entropy(logits, classes)


@full_precision()
def dice_bce_loss(
    logits: Float[Tensor, "b r *s"], regions: Bool[Tensor, "b r *s"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the soft Dice loss of sigmoids (mean over images and regions) and the binary cross-entropy."""
    from monai.losses.dice import DiceLoss

    truth = regions.to(logits)
    return DiceLoss(sigmoid=True)(logits, truth), F.binary_cross_entropy_with_logits(logits, truth)


def largest_component(mask: Bool[Tensor, "*s"]) -> Bool[Tensor, "*s"]:
    """Return the largest connected part of a mask, the first of equal ones; voxels that share a corner touch."""
    from scipy import ndimage

    parts = np.empty(mask.shape, np.int32)
    ndimage.label(mask.cpu().numpy(), np.ones((3,) * mask.ndim), output=parts)
    sizes = np.bincount(parts.ravel())[1:]
    if len(sizes) < 2:
        return mask
    return torch.from_numpy(parts == 1 + sizes.argmax()).to(mask.device)


class Classes(nn.Module):
    """Label values that exclude each other: softmax, and the class of the largest output."""

    def __init__(self, label_names: Mapping[int, str], values: Sequence[int], background_in_loss: bool) -> None:
        super().__init__()
        self.values = tuple(values)
        self.names = ("background", *(label_names[value] for value in values))
        self.num_outputs = len(self.names)
        self.shape = (self.num_outputs, self.num_outputs)
        self.background_in_loss = background_in_loss

    def named(self, label: str | int) -> str:
        """Return the name of a label given by its name or its value; raise ValueError for one that is not learnt."""
        names = dict(zip(self.values, self.names[1:], strict=True))
        return _known_name(names.get(label, label) if isinstance(label, int) else label, names.values(), names)

    def card(self) -> dict[str, Any]:
        """Describe the label value that each output stands for; the first output is the background."""
        return {"class_names": list(self.names), "label_values": list(self.values)}

    def loss(
        self, logits: Float[Tensor, "b k *s"], classes: Int[Tensor, "b *s"], weights: tuple[float, float] = (1.0, 1.0)
    ) -> Losses:
        """Return the weighted sum of Dice loss and cross-entropy."""
        of_constant = classes_loss_of_constant(classes, self.num_outputs, self.background_in_loss, weights)
        return _sum(*dice_ce_loss(logits, classes, self.background_in_loss), weights, of_constant)

    def decide(self, logits: Float[Tensor, "b k *s"]) -> Int[Tensor, "b *s"]:
        """Return the class of every voxel."""
        return logits.argmax(1)

    def true(self, classes: Int[Tensor, "b *s"]) -> Int[Tensor, "b *s"]:
        """Return the correct result of ``decide``."""
        return classes

    def keep_largest(self, classes: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
        """Return a sample's classes with only the largest connected part of each; the rest is background."""
        kept = torch.zeros_like(classes)
        for number in range(1, self.num_outputs):
            kept[largest_component(classes == number)] = number
        return kept

    def masks(self, classes: Int[Tensor, "*s"]) -> Bool[Tensor, "labels *s"]:
        """Return the voxels of each label of a sample."""
        return torch.stack([classes == number for number in range(1, self.num_outputs)])

    def paint(self, classes: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
        """Return an index of ``names`` for each voxel of a sample."""
        return classes

    def count(
        self, true: Int[Tensor, "*s"], predicted: Int[Tensor, "*s"]
    ) -> Int[np.ndarray, "slices true predicted"]:
        """Count the voxels of each slice of a sample by (true, predicted) class."""
        planes = [mask.reshape(-1, *mask.shape[-2:]) for mask in (true, predicted)]
        return count_confusions(planes[0], planes[1], self.num_outputs)

    def score(
        self, counts: Int[np.ndarray, "units true predicted"], convention: ConventionName, scored: str | None = None
    ) -> Scores:
        """Score the counts; ``scored`` names the class that is scored alone."""
        return score(counts, self.names, convention, scored)


class Regions(nn.Module):
    """Named unions of label values: a sigmoid each, thresholded at one half.

    Outputs are sorted by number of label values, largest first, whatever their order in the config: in pictures, a
    region inside another one is drawn over it.
    """

    members: Tensor

    def __init__(self, regions: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.regions = dict(sorted(regions.items(), key=lambda region: (-len(set(region[1])), region[0])))
        self.values = tuple(sorted({value for values in regions.values() for value in values}))
        self.names = ("background", *self.regions)
        self.num_outputs = len(self.regions)
        self.shape = (self.num_outputs, 2, 2)
        members = [[value in values for value in (0, *self.values)] for values in self.regions.values()]
        self.register_buffer("members", torch.tensor(members), persistent=False)

    def named(self, label: str | int) -> str:
        """Return the name of a region; raise ValueError for one that is not learnt."""
        return _known_name(label, self.regions)

    def card(self) -> dict[str, Any]:
        """Describe the label values that each output stands for."""
        regions = {name: sorted(set(values)) for name, values in self.regions.items()}
        return {"class_names": list(self.regions), "regions": regions}

    def loss(
        self, logits: Float[Tensor, "b r *s"], classes: Int[Tensor, "b *s"], weights: tuple[float, float] = (1.0, 1.0)
    ) -> Losses:
        """Return the weighted sum of Dice loss and binary cross-entropy."""
        regions = self.true(classes)
        return _sum(*dice_bce_loss(logits, regions), weights, regions_loss_of_constant(regions, weights))

    def decide(self, logits: Float[Tensor, "b r *s"]) -> Bool[Tensor, "b r *s"]:
        """Tell for every voxel and region whether the voxel lies inside: whether its probability exceeds one half."""
        return logits > 0

    def true(self, classes: Int[Tensor, "b *s"]) -> Bool[Tensor, "b r *s"]:
        """Return the correct result of ``decide``."""
        return self.members[:, classes.long()].movedim(0, 1)

    def keep_largest(self, regions: Bool[Tensor, "r *s"]) -> Bool[Tensor, "r *s"]:
        """Return a sample's regions, of each only the largest connected part."""
        return torch.stack([largest_component(region) for region in regions])

    def masks(self, regions: Bool[Tensor, "r *s"]) -> Bool[Tensor, "r *s"]:
        """Return the voxels of each region of a sample."""
        return regions

    def paint(self, regions: Bool[Tensor, "r *s"]) -> Int[Tensor, "*s"]:
        """Return an index of ``names`` for each voxel of a sample: that of the last region that contains it."""
        number = torch.arange(1, self.num_outputs + 1, device=regions.device)
        return (regions * number.view(-1, *[1] * (regions.ndim - 1))).amax(0)

    def count(
        self, true: Bool[Tensor, "r *s"], predicted: Bool[Tensor, "r *s"]
    ) -> Int[np.ndarray, "one regions true predicted"]:
        """Count a sample's voxels for each region by whether they lie, and are predicted to lie, inside it."""
        return count_confusions(true.int(), predicted.int(), 2)[None]

    def score(
        self,
        counts: Int[np.ndarray, "units regions true predicted"],
        convention: ConventionName,
        scored: str | None = None,
    ) -> Scores:
        """Score the counts; ``scored`` names the region that is scored alone."""
        return score_regions(counts, self.names[1:], convention, scored)


def target_of(
    label_names: Mapping[int, str],
    labels: Sequence[int] | None,
    regions: Mapping[str, Sequence[int]] | None,
    background_in_loss: bool,
) -> Classes | Regions:
    """Return the classes or regions to learn; raise ValueError where the shards' labels lack them."""
    known = sorted(value for value in label_names if value != 0)
    if not known:
        raise ValueError(
            "segmentation: 0 labels to learn, expected at least one; ingest scans together with label maps"
        )
    if regions is not None:
        for name, values in regions.items():
            _check_known(values, known, f"downstream.task.regions.{name}")
        return Regions(regions)
    wanted = known if labels is None else sorted(set(labels) - {0})
    _check_known(wanted, known, "downstream.task.labels")
    return Classes(label_names, wanted, background_in_loss)


def _check_known(wanted: Sequence[int], known: list[int], field: str) -> None:
    """Raise ValueError where there is no label to learn, or a wanted label value is unknown."""
    unknown = sorted(set(wanted) - set(known))
    if unknown or not wanted:
        subject = f"value {unknown[0]}" if unknown else f"{list(wanted)}"
        raise ValueError(f"{field}: {subject} is not among the shards' labels {known}; name some of them")


def _known_name(label: str | int, names: Collection[str], values: Collection[int] = ()) -> str:
    """Return the label if it is one of the names; raise ValueError with near names for another."""
    if label in names:
        return str(label)
    numbers = f" or values {list(values)}" if values else ""
    raise ValueError(
        f"downstream.task.scored_class: {label!r} is not among the labels that are learnt"
        f"{did_you_mean(str(label), names)}; expected one of {list(names)}{numbers}"
    )


def _sum(
    dice: Float[Tensor, ""],
    cross_entropy: Float[Tensor, ""],
    weights: tuple[float, float],
    of_constant: Float[Tensor, ""],
) -> Losses:
    """Return the weighted sum, and the two terms without their weights."""
    total = weights[0] * dice + weights[1] * cross_entropy
    return Losses(total, {"dice_loss": dice.detach(), "cross_entropy": cross_entropy.detach()}, of_constant)
