"""Metrics of detection: average precision beside pycocotools, FROC beside a case computed by hand, and their rows."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from methods.detection.average_precision import Findings, average_precisions
from methods.detection.froc import sensitivities
from methods.downstream.base import merge
from methods.downstream.detection import Detection
from methods.downstream.detection_metrics import findings_of, rows_from, rows_of, score_detections


def findings(
    true: Sequence[Sequence[float]],
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float],
    crowd: Sequence[bool] | None = None,
) -> Findings:
    return Findings(
        np.array(true, float).reshape(-1, 4),
        np.array([False] * len(true) if crowd is None else crowd, bool),
        np.array(boxes, float).reshape(-1, 4),
        np.array(scores, float),
    )


def random_findings(rng: np.random.Generator, crowds: bool, most: int = 8) -> Findings:
    """True boxes and detections near them, some equal, on a coarse grid, with scores that tie."""
    num_true = int(rng.integers(0, most))
    low = rng.integers(0, 30, (num_true, 2))
    true = np.concatenate([low, low + rng.integers(4, 20, (num_true, 2))], axis=1)
    near = np.repeat(true, rng.integers(0, 4, num_true), axis=0)
    near = near + rng.integers(-2, 3, near.shape)
    low = rng.integers(0, 40, (int(rng.integers(0, 6)), 2))
    anywhere = np.concatenate([low, low + rng.integers(1, 20, low.shape)], axis=1)
    boxes = np.concatenate([near, anywhere]).reshape(-1, 4)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    order = rng.permutation(len(boxes))
    crowd = rng.random(num_true) < (0.3 if crowds else 0)
    return findings(true, boxes[order], rng.integers(0, 12, len(boxes)) / 12, crowd)


def box_of(corners: np.ndarray) -> list[float]:
    """COCO's x, y, width and height."""
    top, left, bottom, right = corners.tolist()
    return [left, top, right - left, bottom - top]


def by_pycocotools(images: Sequence[Findings]) -> np.ndarray:
    """Return the average precision at each of COCO's thresholds, -1 where there is no true box."""
    truth, found = [], []
    for number, image in enumerate(images, 1):
        for corners, crowd in zip(image.true, image.crowd.tolist(), strict=True):
            box = box_of(corners)
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(crowd),
                }
            )
        for corners, score in zip(image.boxes, image.scores.tolist(), strict=True):
            found.append({"image_id": number, "category_id": 1, "bbox": box_of(corners), "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in range(1, len(images) + 1)],
            "categories": [{"id": 1}],
            "annotations": truth,
            "info": {},
        }
        coco.createIndex()
        if not found:
            return np.full(10, 0.0 if any((~image.crowd).any() for image in images) else -1.0)
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, -1]  # area "all", 100 detections
    return np.where(precision[:, 0] < 0, -1.0, precision.mean(axis=1))


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans())
def test_average_precision_is_that_of_pycocotools_with_crowds_and_ties(seed, num_images, crowds):
    rng = np.random.default_rng(seed)
    images = [random_findings(rng, crowds) for _ in range(num_images)]
    found = average_precisions(images)
    np.testing.assert_allclose(
        np.full(10, -1.0) if found is None else found, by_pycocotools(images), rtol=0, atol=1e-12
    )


def test_only_the_hundred_likeliest_detections_of_an_image_count_as_in_pycocotools():
    rng = np.random.default_rng(0)
    boxes = rng.integers(0, 40, (250, 2))
    boxes = np.concatenate([boxes, boxes + rng.integers(3, 12, boxes.shape)], axis=1)
    images = [findings(boxes[:50], boxes, rng.permutation(250) / 250)]
    found = average_precisions(images)
    np.testing.assert_allclose(found, by_pycocotools(images), rtol=0, atol=1e-12)
    assert 0 < found[0] < 1


def test_average_precision_of_a_hand_made_scene():
    true = [[0, 0, 10, 10], [20, 20, 30, 30]]
    # The likeliest is wrong, then one box is found, then it is found again, then the other at an IoU of 0.6.
    boxes = [[50, 50, 60, 60], [0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 26]]
    found = average_precisions([findings(true, boxes, [0.9, 0.8, 0.7, 0.6])])
    # Precision is 1/2 up to a recall of 1/2, and 2/4 from there on: 101 points of 1/2.
    assert found[:3].tolist() == pytest.approx([0.5, 0.5, 0.5])
    # Above 0.6 the second box is not found: 51 recalls from 0 to 0.5 at 1/2, and 0 beyond.
    assert found[3:].tolist() == pytest.approx([51 / 101 / 2] * 7)
    assert average_precisions([findings([], [[0, 0, 1, 1]], [0.5])]) is None
    assert average_precisions([findings(true, [], [])]).tolist() == [0.0] * 10


TRUE = [[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]]


def hand_made_images() -> list[list[Findings]]:
    """Four images with four true boxes; in the order of scores: hit, miss, hit again, hit of two, miss, miss, hit."""
    first = findings(TRUE[:2], [[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 29]], [0.95, 0.85, 0.55])
    second = findings([[0, 0, 10, 10], [1, 0, 11, 10]], [[0, 0, 11, 10], [60, 60, 70, 70]], [0.8, 0.7])
    third = findings([], [[5, 5, 9, 9]], [0.9])
    fourth = findings([], [[5, 5, 9, 9]], [0.6])
    return [[first], [second], [third], [fourth]]


def test_sensitivities_of_a_hand_made_scene():
    # Hits 1, then a miss (1/4 per image), a repeat that counts neither way, two at once (3 hits), a miss (2/4), a
    # miss (3/4), and the last hit. So 0.5 is reached with 3 of 4 found, and 1 never: all 4.
    found = sensitivities(hand_made_images(), 4, (0.25, 0.5, 0.75, 1.0))
    assert found == [1 / 4, 3 / 4, 3 / 4, 1.0]


def test_a_bound_that_the_first_detection_reaches_is_reached_with_nothing_found():
    image = findings(TRUE[:1], [[30, 30, 40, 40], [0, 0, 10, 10]], [0.9, 0.8])
    assert sensitivities([[image]], 1, (0.5, 1.0, 2.0)) == [0.0, 0.0, 1.0]
    assert sensitivities([[findings(TRUE, [], [])]], 1, (0.5,)) == [0.0]
    assert sensitivities([[findings([], [[0, 0, 1, 1]], [0.5])]], 1) is None


def test_a_detection_of_another_class_is_a_false_positive():
    liver = findings(TRUE[:1], [], [])
    spleen = findings([], TRUE[:1], [0.9])
    assert sensitivities([[liver, spleen]], 1, (1.0, 2.0)) == [0.0, 0.0]


def interpolated(images: Sequence[Sequence[Findings]], bounds: Sequence[float]) -> list[float]:
    """The sensitivities of one class as 3DCE reads them off its curve: by linear interpolation."""
    from scipy.interpolate import interp1d

    rows = sorted(
        ((-score, number, place) for number, (own,) in enumerate(images) for place, score in enumerate(own.scores)),
    )
    found: set[tuple[int, int]] = set()
    curve, wrong = [], 0
    for _, number, place in rows:
        own = images[number][0]
        top, left, bottom, right = own.boxes[place]
        hit = False
        for box, (a, b, c, d) in enumerate(own.true):
            shared = max(0, min(bottom, c) - max(top, a)) * max(0, min(right, d) - max(left, b))
            if shared / ((bottom - top) * (right - left) + (c - a) * (d - b) - shared) >= 0.5:
                found.add((number, box))
                hit = True
        wrong += not hit
        curve.append((wrong / len(images), len(found)))
    at, hits = np.array(curve).T
    read = interp1d(at, hits / sum(len(own.true) for (own,) in images), fill_value="extrapolate")
    return [
        float(read(bound)) if bound <= at[-1] else hits[-1] / sum(len(o.true) for (o,) in images) for bound in bounds
    ]


@pytest.mark.parametrize("seed", range(20))
def test_sensitivities_are_those_of_the_released_code_wherever_it_does_not_extrapolate(seed):
    rng = np.random.default_rng(seed)
    images = [[random_findings(rng, crowds=False)] for _ in range(12)]
    images = [[Findings(o.true, o.crowd, o.boxes, o.scores + rng.random(len(o.scores)) / 1e3)] for (o,) in images]
    assert sensitivities(images, 12) == pytest.approx(interpolated(images, (0.5, 1, 2, 4)))


def rows(unit: Findings, kind: int) -> np.ndarray:
    return rows_of(unit.true, np.full(len(unit.true), kind), unit.boxes, np.full(len(unit.scores), kind), unit.scores)


def test_rows_of_a_unit_hold_its_findings_class_by_class():
    first, second = findings(TRUE[:2], TRUE[1:], [0.5, 0.4]), findings(TRUE[:1], [], [])
    joined = Detection.joined(rows(first, 0), rows(second, 2))
    assert joined.shape == (5, 7)
    none = findings([], [], [])
    for found, expected in zip(findings_of(joined, 3), (first, none, second), strict=True):
        for field in ("true", "crowd", "boxes", "scores"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    assert rows(none, 0).shape == (0, 7)


def test_evidence_of_a_unit_that_lies_in_several_parts_is_joined_row_below_row():
    first, second = rows(findings(TRUE, [], []), 0), rows(findings([], TRUE[:1], [0.3]), 0)
    merged = merge([{"b": first}, {"a": second, "b": second}], Detection.joined)
    assert list(merged) == ["a", "b"]
    np.testing.assert_array_equal(merged["b"], np.concatenate([first, second]))
    assert merge([{"a": np.ones(2)}, {"a": np.ones(2)}])["a"].tolist() == [2, 2]


def test_scores_are_means_over_the_classes_that_have_true_boxes():
    images = hand_made_images()
    evidence = {f"u-{number}": rows(own, 0) for number, (own,) in enumerate(images)}
    evidence["u-4"] = Detection.joined(
        rows(findings(TRUE[:1], [[0, 0, 10, 8]], [0.5]), 1), rows(findings([], TRUE[2:], [0.1]), 2)
    )
    found = score_detections(evidence, ("lesion", "node", "cyst"))
    lesion = average_precisions([own for (own,) in images])
    node = np.array([1.0] * 7 + [0.0] * 3)  # an IoU of 0.8
    assert found.metrics["ap"] == pytest.approx((lesion.mean() + 0.7) / 2)
    assert found.metrics["ap50"] == pytest.approx((lesion[0] + node[0]) / 2)
    assert found.metrics["ap75"] == pytest.approx((lesion[5] + node[5]) / 2)
    assert found.metrics["ap50/node"] == pytest.approx(1.0)
    assert "ap50/cyst" not in found.metrics
    # 5 true boxes in 5 units: 0.5 false positives per unit are 2.5, reached by the third, after 3 + 0 hits.
    assert found.metrics["sensitivity_at_0.5"] == pytest.approx(3 / 5)
    assert found.metrics["mfroc"] == pytest.approx((3 / 5 + 3) / 4)
    assert found.remarks == (
        "class cyst has no true box in 5 samples but 1 detections: it is left out of the means of ap, and its "
        "detections are false positives of the sensitivities",
    )


def test_cases_tell_of_each_unit_what_was_found():
    images = hand_made_images()
    evidence = {f"u-{number}": rows(own, 0) for number, (own,) in enumerate(images)}
    cases = score_detections(evidence, ("lesion",)).cases
    assert {name: cases[name].tolist()[:3] for name in ("true_boxes", "detections", "found")} == {
        "true_boxes": [2, 2, 0],
        "detections": [3, 2, 1],
        "found": [2, 2, 0],
    }
    for boxes, own in zip(cases["boxes"], evidence.values(), strict=True):
        np.testing.assert_array_equal(rows_from(boxes, ("lesion",)), own)
    assert cases["boxes"][2] == [
        {"true": False, "class": "lesion", "score": float(own[2]), "corners": own[3:].tolist()}
        for own in evidence["u-2"]
    ]
    assert cases["sensitivity"].tolist() == pytest.approx([1, 1, np.nan, np.nan], nan_ok=True)
    # The first unit: right, a repeat that is wrong here, right: 51 recalls at 1 and 50 at 2/3.
    assert cases["ap50"].tolist() == pytest.approx([(51 + 50 * 2 / 3) / 101, 51 / 101, np.nan, np.nan], nan_ok=True)


def test_without_a_true_box_nothing_is_defined():
    with pytest.raises(ValueError, match="0 true boxes in 1 sample, expected at least 1; validate on samples with"):
        score_detections({"a": rows(findings([], TRUE, [0.1] * 3), 0)}, ("lesion",))
