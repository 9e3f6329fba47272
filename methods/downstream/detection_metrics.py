"""Metrics of detection, from the true boxes and the detections of units: pictures, slices, or planes of volumes.

``ap`` is COCO's average precision, the mean over the IoU thresholds 0.5, 0.55, ... 0.95 and over the classes;
``ap50`` and ``ap75`` are those at one threshold; see ``methods/detection/average_precision.py``. ``sensitivity_at_1``
is the share of true boxes that are found when one false positive per unit is accepted, and ``mfroc`` the mean of
those at 0.5, 1, 2 and 4; see ``methods/detection/froc.py``.

What is known of a unit is an array with a row for each box, so that parts of it are joined row below row:

    0     1 for a true box, 0 for a detection
    1     the place of its class among the names
    2     the score of a detection, 1 for a true box
    3-6   low and high corner in pixels, as ``methods/detection`` has them

A class without a true box is left out of the means of ``ap``. Without any true box, nothing is defined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from methods.detection.average_precision import (
    Findings,
    MatchedDetections,
    matched_detections,
    precisions_of,
)
from methods.detection.froc import FALSE_POSITIVES, Finds, finds_of, sensitivities_of

COLUMNS = 7
FIFTY, SEVENTY_FIVE = 0, 5
Rows = Float64[np.ndarray, "rows 7"]


@dataclass(frozen=True)
class DetectionScores:
    """Metrics by name, a class's own as ``ap50/<class>``; remarks on what is left out; and a row for each unit.

    true_boxes, detections   how many the unit has
    found                    how many of its true boxes are found by any of its detections, at an IoU of 0.5
    sensitivity, ap50        of the unit alone; NaN where it has no true box
    boxes                    each box: whether it is true, its class, its score, and its corners as above
    """

    metrics: dict[str, float]
    remarks: tuple[str, ...]
    cases: dict[str, Any]


@dataclass(frozen=True)
class JudgedUnit:
    """What a unit adds to metrics: of each class, which detections are right, and what they find."""

    matched: tuple[MatchedDetections, ...]
    finds: tuple[Finds, ...]

    @classmethod
    def of(cls, findings: Sequence[Findings]) -> "JudgedUnit":
        """Match the findings of each class in a unit."""
        return cls(tuple(map(matched_detections, findings)), tuple(map(finds_of, findings)))


def rows_of(
    true: Float[np.ndarray, "m 4"],
    true_classes: Int[np.ndarray, " m"],
    boxes: Float[np.ndarray, "n 4"],
    classes: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
) -> Rows:
    """Return what is known of a unit."""
    truth = np.column_stack([np.ones(len(true)), true_classes, np.ones(len(true)), true])
    found = np.column_stack([np.zeros(len(boxes)), classes, scores, boxes])
    return np.concatenate([truth, found]).astype(np.float64).reshape(-1, COLUMNS)


def findings_of(rows: Rows, num_classes: int) -> list[Findings]:
    """Return the findings of each class in a unit; none of its true boxes is a crowd."""
    found: list[Findings] = []
    for number in range(num_classes):
        own = rows[rows[:, 1] == number]
        true, detected = own[own[:, 0] == 1], own[own[:, 0] == 0]
        found.append(Findings(true[:, 3:], np.zeros(len(true), bool), detected[:, 3:], detected[:, 2]))
    return found


def boxes_of(rows: Rows, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is known of a unit as values with names, to be kept in a file."""
    return [
        {"true": bool(row[0]), "class": names[int(row[1])], "score": float(row[2]), "corners": row[3:].tolist()}
        for row in rows
    ]


def rows_from(boxes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Rows:
    """Return what is known of a unit from what ``boxes_of`` made of it."""
    told = [[float(box["true"]), names.index(box["class"]), box["score"], *box["corners"]] for box in boxes]
    return np.array(told, np.float64).reshape(-1, COLUMNS)


def score_detections(evidence: Mapping[str, Rows], names: Sequence[str]) -> DetectionScores:
    """Score the rows of all units; raise ValueError where there is no true box in any."""
    units = [JudgedUnit.of(findings_of(rows, len(names))) for rows in evidence.values()]
    metrics, remarks = score_units(units, names)
    boxes = [boxes_of(rows, names) for rows in evidence.values()]
    return DetectionScores(metrics, remarks, {**_cases(units), "boxes": boxes})


def score_units(units: Sequence[JudgedUnit], names: Sequence[str]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the metrics of judged units, and remarks; raise ValueError where there is no true box in any."""
    by_class: dict[str, Float[np.ndarray, " t"]] = {}
    remarks: list[str] = []
    for number, name in enumerate(names):
        found = precisions_of([unit.matched[number] for unit in units])
        if found is None:
            alarms = sum(len(unit.finds[number].scores) for unit in units)
            remarks.append(
                f"class {name} has no true box in {_units(len(units))} but {alarms} detections: it is left out of "
                "the means of ap, and its detections are false positives of the sensitivities"
            )
        else:
            by_class[name] = found
    shares = sensitivities_of([own for unit in units for own in unit.finds], len(units))
    if shares is None:
        raise ValueError(
            f"detection scores: 0 true boxes in {_units(len(units))}, expected at least 1; validate on samples with "
            "boxes: see `raydiology shards show`"
        )
    mean = np.mean(list(by_class.values()), axis=0)
    metrics = {"ap": float(mean.mean()), "ap50": float(mean[FIFTY]), "ap75": float(mean[SEVENTY_FIVE])}
    metrics |= {f"ap50/{name}": float(own[FIFTY]) for name, own in by_class.items()}
    metrics |= {f"sensitivity_at_{bound:g}": share for bound, share in zip(FALSE_POSITIVES, shares, strict=True)}
    return {**metrics, "mfroc": float(np.mean(shares))}, tuple(remarks)


def _cases(units: Sequence[JudgedUnit]) -> dict[str, Float[np.ndarray, " units"]]:
    columns = {
        name: np.full(len(units), np.nan) for name in ("true_boxes", "detections", "found", "sensitivity", "ap50")
    }
    for place, unit in enumerate(units):
        num_true = sum(own.num_true for own in unit.finds)
        found = sum(int(own.gains.sum()) for own in unit.finds)
        columns["true_boxes"][place] = num_true
        columns["detections"][place] = sum(len(own.scores) for own in unit.finds)
        columns["found"][place] = found
        if num_true:
            precisions = [precisions_of([own]) for own in unit.matched]
            columns["sensitivity"][place] = found / num_true
            columns["ap50"][place] = float(np.mean([own[FIFTY] for own in precisions if own is not None]))
    return columns


def _units(count: int) -> str:
    return f"{count:,} sample{'' if count == 1 else 's'}"
