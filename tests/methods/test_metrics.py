"""Dice and IoU against a slow reference written from the definitions, and against MONAI's DiceMetric."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric
from torch.nn.functional import one_hot

from methods.downstream.base import merge
from methods.downstream.metrics import CONVENTIONS, count_confusions, score

NAMES = ("background", "liver", "spleen", "aorta")


def slow_dice_and_iou(truth: np.ndarray, prediction: np.ndarray, label: int) -> tuple[float, float] | None:
    """Compare two label maps as sets of voxel indices; None where neither holds the label."""
    true = {tuple(index) for index in np.argwhere(truth == label)}
    predicted = {tuple(index) for index in np.argwhere(prediction == label)}
    if not true | predicted:
        return None
    common = len(true & predicted)
    return 2 * common / (len(true) + len(predicted)), common / len(true | predicted)


def slow_volume_scores(truths: np.ndarray, predictions: np.ndarray) -> tuple[float, float, dict[str, float]]:
    """Average per label over the volumes in which it is scored, then over labels; background left out."""
    dice_means, iou_means, per_label = [], [], {}
    for label in range(1, len(NAMES)):
        pairs = [slow_dice_and_iou(t, p, label) for t, p in zip(truths, predictions, strict=True)]
        scored = [pair for pair in pairs if pair is not None]
        if scored:
            per_label[NAMES[label]] = sum(dice for dice, _ in scored) / len(scored)
            dice_means.append(per_label[NAMES[label]])
            iou_means.append(sum(iou for _, iou in scored) / len(scored))
    return sum(dice_means) / len(dice_means), sum(iou_means) / len(iou_means), per_label


def label_maps(seed: int, units: int = 3, size: tuple[int, ...] = (3, 4, 5)) -> tuple[np.ndarray, np.ndarray]:
    """Draw truths and predictions that agree on about half of their voxels; labels are often absent."""
    rng = np.random.default_rng(seed)
    truths = rng.integers(0, len(NAMES), (units, *size)) * (rng.random((units, *size)) < 0.5)
    truths[truths == rng.integers(0, len(NAMES))] = 0
    noise = rng.integers(0, len(NAMES), truths.shape)
    return truths, np.where(rng.random(truths.shape) < 0.5, truths, noise)


def counts_of(truths: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return count_confusions(torch.from_numpy(truths), torch.from_numpy(predictions), len(NAMES))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_volume_scores_equal_the_slow_reference(seed: int) -> None:
    truths, predictions = label_maps(seed)
    scores = score(counts_of(truths, predictions), NAMES)
    mean_dice, mean_iou, per_label = slow_volume_scores(truths, predictions)
    assert scores.mean_dice == pytest.approx(mean_dice, abs=1e-12)
    assert scores.mean_iou == pytest.approx(mean_iou, abs=1e-12)
    assert scores.dice == pytest.approx(per_label, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_thesis_scores_equal_monai_s_dice_metric_over_slices(seed: int) -> None:
    truths, predictions = label_maps(seed, units=5, size=(6, 7))
    metric = DiceMetric(include_background=True, reduction="mean")
    as_channels = [one_hot(torch.from_numpy(x), len(NAMES)).movedim(-1, 1) for x in (predictions, truths)]
    metric(*as_channels)
    assert score(counts_of(truths, predictions), NAMES, "thesis").mean_dice == pytest.approx(
        float(metric.aggregate()), abs=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_unit_s_counts_are_the_sum_of_its_slices_counts(seed: int) -> None:
    truths, predictions = label_maps(seed)
    whole = counts_of(truths, predictions)
    for unit, counts in enumerate(whole):
        np.testing.assert_array_equal(counts_of(truths[unit], predictions[unit]).sum(0), counts)


def test_counts_of_a_volume_s_parts_add_up_whoever_counted_them() -> None:
    truths, predictions = label_maps(7)
    whole, parts = counts_of(truths, predictions)[0], counts_of(truths[0], predictions[0])
    merged = merge([{"v-1": parts[0], "v-2": parts[1]}, {"v-1": parts[1]}, {"v-1": parts[2]}, {}])
    np.testing.assert_array_equal(merged["v-1"], whole)
    np.testing.assert_array_equal(merged["v-2"], parts[1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_iou_follows_from_dice_for_a_single_volume(seed: int) -> None:
    truths, predictions = label_maps(seed, units=1)
    scores = score(counts_of(truths, predictions), NAMES)
    for name, dice in scores.dice.items():
        assert scores.iou[name] == pytest.approx(dice / (2 - dice), abs=1e-12)


def test_a_perfect_prediction_scores_one_and_a_disjoint_one_zero() -> None:
    truth = np.array([[1, 1, 0, 0]])
    perfect = score(counts_of(truth, truth), NAMES)
    disjoint = score(counts_of(truth, np.array([[0, 0, 1, 1]])), NAMES)
    assert (perfect.mean_dice, perfect.mean_iou) == (1.0, 1.0)
    assert (disjoint.mean_dice, disjoint.mean_iou) == (0.0, 0.0)


def test_counts_know_which_class_is_true_and_which_is_predicted() -> None:
    counts = counts_of(np.array([[1, 1, 1, 2]]), np.array([[2, 2, 1, 2]]))
    assert counts[0, 1, 2] == 2
    assert counts[0, 2, 1] == 0
    assert (counts[0, 1, 1], counts[0, 2, 2]) == (1, 1)


def test_padding_is_not_counted() -> None:
    truth = torch.tensor([[1, 0, -1, -1]])
    counts = count_confusions(truth, torch.tensor([[1, 0, 3, 2]]), len(NAMES))
    assert counts.sum() == 2
    assert (counts[0, 1, 1], counts[0, 0, 0]) == (1, 1)


def test_a_false_alarm_scores_zero_per_volume_and_is_skipped_by_the_thesis() -> None:
    truth, prediction = np.array([[1, 1, 0, 0]]), np.array([[1, 1, 2, 0]])
    volume = score(counts_of(truth, prediction), NAMES)
    assert volume.dice == {"liver": 1.0, "spleen": 0.0}
    assert volume.mean_dice == 0.5
    thesis = score(counts_of(truth, prediction), NAMES, "thesis")
    assert thesis.dice == {"background": pytest.approx(2 / 3), "liver": 1.0}
    assert thesis.mean_dice == pytest.approx((2 / 3 + 1) / 2)


def test_a_label_that_occurs_nowhere_is_left_out_in_words() -> None:
    truth = np.array([[1, 1, 0, 0], [0, 1, 0, 0]])
    prediction = np.array([[1, 1, 2, 0], [0, 1, 0, 0]])
    scores = score(counts_of(truth, prediction), NAMES)
    assert scores.num_units == {"liver": 2, "spleen": 1}
    assert scores.remarks == (
        "label spleen occurs in none of the 2 volumes but was predicted in 1: it scores 0",
        "label aorta occurs in none of the 2 volumes: it has no score and is left out of the mean",
    )
    assert not any(math.isnan(value) for value in scores.dice.values())


def test_nothing_to_score_is_an_error_that_names_the_labels_and_the_remedy() -> None:
    empty = np.zeros((2, 4), dtype=np.int64)
    with pytest.raises(ValueError, match=r"none of the labels \['liver'.*in the 2 volumes.*check the split"):
        score(counts_of(empty, empty), NAMES)


@pytest.mark.parametrize("subject", ["truth", "prediction"])
def test_a_class_beyond_the_last_is_refused(subject: str) -> None:
    maps = {"truth": torch.tensor([[0, 1]]), "prediction": torch.tensor([[0, 1]])}
    maps[subject] = torch.tensor([[0, 4]])
    with pytest.raises(ValueError, match=rf"{subject}: class 4 exceeds 4 classes; .* map the label values"):
        count_confusions(**maps, num_classes=4)


def test_mean_over_labels_weighs_every_label_once_and_mean_over_slices_every_slice_once() -> None:
    truth = np.array([[1, 1, 2, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    prediction = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    counts = counts_of(truth, prediction)
    assert score(counts, NAMES).mean_dice == pytest.approx((1 + 0) / 2)
    first_slice = (2 * 1 / (1 + 2) + 1 + 0) / 3
    assert score(counts, NAMES, "thesis").mean_dice == pytest.approx((first_slice + 1 + 1) / 3)


def test_the_default_convention_excludes_background() -> None:
    assert not CONVENTIONS["volume"].background
    assert CONVENTIONS["thesis"].background


def single_class_counts() -> np.ndarray:
    """Three volumes of eight voxels: the spleen is in two of them, and falsely predicted in none but the second."""
    truth = np.array([[2, 2, 2, 2, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0, 0, 0]])
    prediction = np.array([[2, 2, 2, 0, 1, 1, 2, 0], [1, 0, 0, 0, 0, 0, 0, 0], [2, 2, 2, 2, 0, 0, 0, 0]])
    return counts_of(truth, prediction)


def test_under_single_class_the_means_are_of_one_label_over_its_volumes_and_its_iou_is_the_score() -> None:
    counts = single_class_counts()
    scores = score(counts, NAMES, "single_class", "spleen")
    assert scores.mean_iou == scores.score == pytest.approx((3 / 5 + 2 / 4) / 2)  # not in the second volume at all
    assert scores.mean_dice == pytest.approx((6 / 8 + 4 / 6) / 2)
    assert scores.num_units == {"liver": 2, "spleen": 2}
    assert scores.iou == pytest.approx({"liver": (1 + 1 / 2) / 2, "spleen": 0.55})
    of_all = score(counts, NAMES)
    assert of_all.score == of_all.mean_dice == pytest.approx((sum(of_all.dice.values())) / 2)
    assert of_all.mean_iou == pytest.approx((0.75 + 0.55) / 2)


def test_a_single_class_that_is_only_predicted_scores_0_and_one_that_is_nowhere_is_refused() -> None:
    counts = single_class_counts()[1:]
    counts[0, 0, 2], counts[0, 0, 0] = 1, counts[0, 0, 0] - 1  # one false voxel of the spleen in the second volume
    assert score(counts, NAMES, "single_class", "spleen").score == pytest.approx((0 + 2 / 4) / 2)
    with pytest.raises(ValueError, match=r"label aorta does not occur in the 2 volumes that were .*check the split"):
        score(counts, NAMES, "single_class", "aorta")
