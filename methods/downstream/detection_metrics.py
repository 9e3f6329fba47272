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

import numpy as np
from jaxtyping import Float, Float64, Int

from methods.detection.average_precision import THRESHOLDS, Findings, average_precisions
from methods.detection.froc import FALSE_POSITIVES, hits, sensitivities

COLUMNS = 7
FIFTY, SEVENTY_FIVE = 0, 5
Rows = Float64[np.ndarray, "rows 7"]


@dataclass(frozen=True)
class DetectionScores:
    """Metrics by name, a class's own as ``ap50/<class>``; remarks on what is left out; and a row for each unit.

    true_boxes, detections   how many the unit has
    found                    how many of its true boxes are found by any of its detections, at an IoU of 0.5
    sensitivity, ap50        of the unit alone; NaN where it has no true box
    """

    metrics: dict[str, float]
    remarks: tuple[str, ...]
    cases: dict[str, Float[np.ndarray, " units"]]


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


def score_detections(evidence: Mapping[str, Rows], names: Sequence[str]) -> DetectionScores:
    """Score the rows of all units; raise ValueError where there is no true box in any."""
    units = [findings_of(rows, len(names)) for rows in evidence.values()]
    by_class: dict[str, Float[np.ndarray, " t"]] = {}
    remarks: list[str] = []
    for number, name in enumerate(names):
        found = average_precisions([unit[number] for unit in units])
        if found is None:
            alarms = sum(len(unit[number].scores) for unit in units)
            remarks.append(
                f"class {name} has no true box in {_units(len(units))} but {alarms} detections: it is left out of "
                "the means of ap, and its detections are false positives of the sensitivities"
            )
        else:
            by_class[name] = found
    shares = sensitivities(units, len(units))
    if shares is None:
        raise ValueError(
            f"detection scores: 0 true boxes in {_units(len(units))}, expected at least 1; validate on samples with "
            "boxes: see `raydiology shards show`"
        )
    mean = np.mean(list(by_class.values()), axis=0)
    metrics = {"ap": float(mean.mean()), "ap50": float(mean[FIFTY]), "ap75": float(mean[SEVENTY_FIVE])}
    metrics |= {f"ap50/{name}": float(own[FIFTY]) for name, own in by_class.items()}
    metrics |= {f"sensitivity_at_{bound:g}": share for bound, share in zip(FALSE_POSITIVES, shares, strict=True)}
    return DetectionScores({**metrics, "mfroc": float(np.mean(shares))}, tuple(remarks), _cases(units))


def _cases(units: Sequence[Sequence[Findings]]) -> dict[str, Float[np.ndarray, " units"]]:
    columns = {
        name: np.full(len(units), np.nan) for name in ("true_boxes", "detections", "found", "sensitivity", "ap50")
    }
    for place, unit in enumerate(units):
        num_true = sum(len(own.true) for own in unit)
        found = sum(int(hits(own, np.arange(len(own.scores)))[0].sum()) for own in unit)
        columns["true_boxes"][place] = num_true
        columns["detections"][place] = sum(len(own.scores) for own in unit)
        columns["found"][place] = found
        own = [average_precisions([one], THRESHOLDS[:1]) for one in unit]
        if num_true:
            columns["sensitivity"][place] = found / num_true
            columns["ap50"][place] = float(np.mean([value for value in own if value is not None]))
    return columns


def _units(count: int) -> str:
    return f"{count:,} sample{'' if count == 1 else 's'}"
