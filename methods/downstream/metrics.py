"""Dice and IoU of label maps, from voxel counts per (true class, predicted class).

Counts are additive: the slices of a volume may be predicted on different ranks, and their sum scores the volume.
What a mean Dice means differs between papers, so every choice is a field of ``Convention``:

``volume``  one score per volume and label, background excluded. A label that is neither in the truth nor in the
            prediction is skipped; one that is only predicted scores 0. Mean over the volumes for each label, then
            over the labels.
``thesis``  the IoU-based-positives thesis' released code (dittohed/exploring-ssl-for-ct, MONAI's DiceMetric with
            background over single slices): one score per slice and label, labels that are absent from the truth
            are skipped even where they are predicted. Mean over the labels of each slice, then over the slices.
``brats``   the BraTS challenge's, as in Isensee et al. ("nnU-Net for Brain Tumor Segmentation", BrainLes 2020):
            as ``volume``, but a region that is neither in the truth nor in the prediction scores 1.
``single_class``  JSSL's released code (duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive, its
            script for MM-WHS): as ``volume``, but both means are of one label alone, and the score is its IoU. Other
            labels keep scores of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ConventionName = Literal["volume", "thesis", "brats", "single_class"]


@dataclass(frozen=True)
class Convention:
    """The rules by which counts become one number.

    unit            volumes or slices: each is scored on its own
    background      whether class 0 counts as a label
    false_alarms    whether a label that is predicted but absent from the truth scores 0 (else it is skipped)
    average_first   the mean that is taken first: of a label over units, or of a unit over labels
    silence         whether a label that is neither predicted nor there scores 1 (else it is skipped)
    single          whether the means are of one label, which the caller names, and not of all
    chosen_by       which of the two means is the score
    """

    unit: Literal["volume", "slice"]
    background: bool
    false_alarms: bool
    average_first: Literal["units", "labels"]
    silence: bool = False
    single: bool = False
    chosen_by: Literal["dice", "iou"] = "dice"


CONVENTIONS: dict[ConventionName, Convention] = {
    "volume": Convention(unit="volume", background=False, false_alarms=True, average_first="units"),
    "thesis": Convention(unit="slice", background=True, false_alarms=False, average_first="labels"),
    "brats": Convention(unit="volume", background=False, false_alarms=True, average_first="units", silence=True),
    "single_class": Convention(
        unit="volume", background=False, false_alarms=True, average_first="units", single=True, chosen_by="iou"
    ),
}


@dataclass(frozen=True)
class Scores:
    """Dice and IoU in [0, 1]: a value per label that could be scored, their means, and that which is the score.

    ``num_units`` counts the volumes or slices behind each label's value. ``remarks`` names the labels that
    have no score, or a score of 0 by false alarms alone. ``unit_dice`` and ``unit_iou`` are what is averaged: a value
    for each unit and each of ``labels``, NaN where the pair is skipped.
    """

    score: float
    mean_dice: float
    mean_iou: float
    dice: dict[str, float]
    iou: dict[str, float]
    num_units: dict[str, int]
    remarks: tuple[str, ...]
    labels: tuple[str, ...]
    unit_dice: Float[np.ndarray, "units labels"]
    unit_iou: Float[np.ndarray, "units labels"]


def count_confusions(
    truth: Int[Tensor, "units *size"], prediction: Int[Tensor, "units *size"], num_classes: int
) -> Int[np.ndarray, "units true predicted"]:
    """Count the voxels of each unit by (true class, predicted class); a negative truth (padding) is not counted.

    Raises ValueError where a class is not below ``num_classes``.
    """
    for subject, classes in (("truth", truth), ("prediction", prediction)):
        highest = int(classes.max()) if classes.numel() else 0
        if highest >= num_classes:
            raise ValueError(
                f"{subject}: class {highest} exceeds {num_classes} classes; expected 0 to {num_classes - 1}; "
                "map the label values to class indices first"
            )
    units = len(truth)
    cell = truth.long() * num_classes + prediction.long()
    cell = cell + torch.arange(units, device=cell.device).view(-1, *[1] * (cell.ndim - 1)) * num_classes**2
    counts = torch.bincount(cell[truth >= 0], minlength=units * num_classes**2)
    return counts.reshape(units, num_classes, num_classes).cpu().numpy()


def dice_and_iou(
    counts: Int[np.ndarray, "units true predicted"], rules: Convention
) -> tuple[Float[np.ndarray, "units labels"], Float[np.ndarray, "units labels"]]:
    """Return the Dice and the IoU of each unit and class, NaN where the pair is skipped.

    Dice = 2 TP / (T + P) and IoU = TP / (T + P - TP), with T true, P predicted and TP agreeing voxels.
    """
    agreeing = np.einsum("ukk->uk", counts).astype(np.float64)
    true, predicted = counts.sum(2).astype(np.float64), counts.sum(1).astype(np.float64)
    scored = true + predicted > 0 if rules.false_alarms else true > 0
    both = np.where(scored, true + predicted, 1.0)
    skipped = np.where(true + predicted == 0, 1.0, np.nan) if rules.silence else np.nan
    dice = np.where(scored, 2 * agreeing / both, skipped)
    iou = np.where(scored, agreeing / np.where(scored, both - agreeing, 1.0), skipped)
    return dice, iou


def check_scored_class(convention: ConventionName, scored: int | str | None) -> None:
    """Raise ValueError where a convention of one label lacks it, or another convention is given one."""
    if CONVENTIONS[convention].single and scored is None:
        raise ValueError(f"scored_class: missing beside convention {convention}; name the one label that is scored")
    if not CONVENTIONS[convention].single and scored is not None:
        raise ValueError(
            f"scored_class {scored!r} beside convention {convention}, which scores all labels; set "
            "convention=single_class, or leave scored_class out"
        )


def score(
    counts: Int[np.ndarray, "units classes classes"],
    label_names: Sequence[str],
    convention: ConventionName = "volume",
    scored: str | None = None,
) -> Scores:
    """Score counts of the convention's units (volumes or slices).

    ``label_names`` names every class, background first; ``scored`` is the label of which the means are under
    ``single_class``. Raises ValueError where nothing can be scored.
    """
    rules = CONVENTIONS[convention]
    assert counts.shape[1] == len(label_names), "one name per class, background included"
    first = 0 if rules.background else 1
    dice, iou = (values[:, first:] for values in dice_and_iou(counts, rules))
    return _scores(dice, iou, counts.sum(2)[:, first:], list(label_names[first:]), rules, scored)


def score_regions(
    counts: Int[np.ndarray, "units regions true predicted"],
    names: Sequence[str],
    convention: ConventionName = "volume",
    scored: str | None = None,
) -> Scores:
    """Score regions, each by its own (true, predicted) counts of voxels outside (0) and inside it (1).

    ``names`` names every region; ``scored`` as in ``score``. Raises ValueError where nothing can be scored.
    """
    rules = CONVENTIONS[convention]
    assert counts.shape[1] == len(names), "one name per region"
    pairs = dice_and_iou(counts.reshape(-1, 2, 2), rules)
    dice, iou = (values[:, 1].reshape(counts.shape[:2]) for values in pairs)
    return _scores(dice, iou, counts[:, :, 1].sum(2), list(names), rules, scored)


def _scores(
    dice: Float[np.ndarray, "units labels"],
    iou: Float[np.ndarray, "units labels"],
    true: Int[np.ndarray, "units labels"],
    names: list[str],
    rules: Convention,
    scored: str | None,
) -> Scores:
    assert (scored is not None) == rules.single, "one label is named where one is scored"
    num_scored, counted = (~np.isnan(dice)).sum(0), slice(None) if scored is None else [names.index(scored)]
    if not num_scored[counted].any():
        subject = f"none of the labels {names} occurs" if scored is None else f"label {scored} does not occur"
        raise ValueError(
            f"segmentation scores: {subject} in the {len(true)} {rules.unit}s that were evaluated; expected at least "
            "one; check the split and the labels of the shards"
        )
    mean_dice, mean_iou = _mean(dice[:, counted], rules), _mean(iou[:, counted], rules)
    return Scores(
        score=mean_dice if rules.chosen_by == "dice" else mean_iou,
        mean_dice=mean_dice,
        mean_iou=mean_iou,
        dice=_by_label(dice, names),
        iou=_by_label(iou, names),
        num_units={name: int(n) for name, n in zip(names, num_scored, strict=True) if n},
        remarks=_remarks(true, num_scored, names, rules),
        labels=tuple(names),
        unit_dice=dice,
        unit_iou=iou,
    )


def _mean(values: Float[np.ndarray, "units labels"], rules: Convention) -> float:
    """Average the values that are not NaN, over one axis and then over the other."""
    first, second = (0, 1) if rules.average_first == "units" else (1, 0)
    some = ~np.isnan(values).all(first)
    kept = values.compress(some, axis=second)
    return float(np.nanmean(kept, axis=first).mean())


def _by_label(values: Float[np.ndarray, "units labels"], names: Sequence[str]) -> dict[str, float]:
    columns = zip(names, values.T, strict=True)
    return {name: float(np.nanmean(column)) for name, column in columns if not np.isnan(column).all()}


def _remarks(
    true: Int[np.ndarray, "units labels"], num_scored: Int[np.ndarray, "labels"], names: list[str], rules: Convention
) -> tuple[str, ...]:
    """List the labels that occur in no unit, and the effect on their scores."""
    where = f"none of the {len(true)} {rules.unit}s"
    remarks = []
    for name, voxels, scored in zip(names, true.sum(0), num_scored, strict=True):
        if voxels == 0 and rules.silence:
            remarks.append(f"label {name} occurs in {where}: it scores 1 where it was not predicted either, else 0")
        elif voxels == 0 and scored == 0:
            remarks.append(f"label {name} occurs in {where}: it has no score and is left out of the mean")
        elif voxels == 0:
            remarks.append(f"label {name} occurs in {where} but was predicted in {scored}: it scores 0")
    return tuple(remarks)
