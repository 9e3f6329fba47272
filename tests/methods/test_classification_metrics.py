"""Metrics of classification equal scikit-learn's and hand-counted ones; undefined metrics are named."""

import warnings
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from methods.downstream.classification_metrics import (
    count_pairs,
    quadratic_kappa,
    score_multi_label,
    score_single,
    unweighted_kappa,
)

NAMES = ("normal", "mild", "severe", "blind")


def single(seed: int, num_samples: int, num_classes: int, coarse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw classes and probabilities; ``coarse`` ones have many ties."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, num_samples)
    raw = rng.integers(1, 4, (num_samples, num_classes)) if coarse else rng.random((num_samples, num_classes)) + 0.01
    return truth, raw / raw.sum(1, keepdims=True)


def pair(truth: list[int], predicted: list[int], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return classes, and probabilities that are 0.7 for the predicted class."""
    chosen = np.array(predicted)[:, None] == np.arange(num_classes)
    return np.array(truth), np.where(chosen, 0.7, 0.3 / (num_classes - 1))


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(30, 60), st.integers(2, 4), st.booleans())
def test_exclusive_classes_score_as_in_scikit_learn(seed, num_samples, num_classes, coarse):
    truth, probabilities = single(seed, num_samples, num_classes, coarse)
    truth[:num_classes] = np.arange(num_classes)
    predicted, names = probabilities.argmax(1), NAMES[:num_classes]
    found = score_single(truth, probabilities, names).metrics
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are never predicted
        expected = {
            "accuracy": sk.accuracy_score(truth, predicted),
            "recall": sk.balanced_accuracy_score(truth, predicted),
            "precision": sk.precision_score(truth, predicted, average="macro"),
            "f1": sk.f1_score(truth, predicted, average="macro"),
            "kappa": sk.cohen_kappa_score(truth, predicted),
        }
        by_class = {
            "precision": sk.precision_score(truth, predicted, average=None),
            "recall": sk.recall_score(truth, predicted, average=None),
            "f1": sk.f1_score(truth, predicted, average=None),
        }
    if num_classes == 2:
        expected["auc"] = sk.roc_auc_score(truth, probabilities[:, 1])
    else:
        expected["auc"] = sk.roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    for metric, values in by_class.items():
        assert [found[f"{metric}/{name}"] for name in names] == pytest.approx(values.tolist(), abs=1e-12)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(10, 60), st.integers(1, 4))
def test_classes_that_do_not_exclude_each_other_score_as_in_scikit_learn(seed, num_samples, num_classes):
    rng = np.random.default_rng(seed)
    truth = rng.random((num_samples, num_classes)) < 0.4
    truth[0], truth[1] = True, False
    probabilities = rng.integers(0, 8, truth.shape) / 7
    found = score_multi_label(truth, probabilities, NAMES[:num_classes]).metrics
    predicted = probabilities > 0.5
    columns = list(zip(truth.T, predicted.T, strict=True))
    expected = {
        "accuracy": np.mean([(t == p).all() for t, p in zip(truth, predicted, strict=True)]),
        "label_accuracy": np.mean([sk.accuracy_score(t, p) for t, p in columns]),
        "auc": np.mean([sk.roc_auc_score(t, p) for t, p in zip(truth.T, probabilities.T, strict=True)]),
        "precision": np.mean([sk.precision_score(t, p, zero_division=0) for t, p in columns]),
        "recall": np.mean([sk.recall_score(t, p) for t, p in columns]),
        "f1": np.mean([sk.f1_score(t, p) for t, p in columns]),
    }
    if num_classes > 1:
        assert expected["auc"] == pytest.approx(sk.roc_auc_score(truth, probabilities, average="macro"))
        assert expected["accuracy"] == sk.accuracy_score(truth, predicted)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 4), st.booleans())
def test_any_input_has_scores_that_are_numbers_and_a_remark_for_each_that_is_missing(seed, num, classes, coarse):
    truth, probabilities = single(seed, num, classes, coarse)
    scores = score_single(truth, probabilities, NAMES[:classes])
    assert all(np.isfinite(value) for value in scores.metrics.values())
    for metric in ("precision", "recall", "specificity", "f1", "auc"):
        for name in NAMES[:classes]:
            said = any(remark.startswith(f"class {name} occurs") for remark in scores.remarks)
            assert f"{metric}/{name}" in scores.metrics or said
        assert metric in scores.metrics or f"no class has {metric}: it is left out" in scores.remarks
    assert ("kappa" in scores.metrics) != any("kappa is not defined" in remark for remark in scores.remarks)


def test_scores_of_a_small_table_are_those_counted_by_hand():
    truth, probabilities = pair([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2], 3)
    scores = score_single(truth, probabilities, NAMES[:3])
    found = scores.metrics
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert [found[f"precision/{name}"] for name in NAMES[:3]] == pytest.approx([2 / 2, 1 / 2, 1 / 2])
    assert [found[f"recall/{name}"] for name in NAMES[:3]] == pytest.approx([2 / 3, 1 / 2, 1 / 1])
    assert [found[f"specificity/{name}"] for name in NAMES[:3]] == pytest.approx([3 / 3, 3 / 4, 4 / 5])
    assert [found[f"f1/{name}"] for name in NAMES[:3]] == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert found["specificity"] == pytest.approx((1 + 3 / 4 + 4 / 5) / 3)
    # Errors: 2 in 6 samples; by chance, in 36 pairs, 3 * 4 + 2 * 4 + 1 * 4.
    assert found["kappa"] == pytest.approx(1 - (2 / 6) / (24 / 36))
    assert scores.remarks == ()
    # Squared distances: 2 in 6 samples; by chance, in 36 pairs, 3 * (2 + 2 * 4) + 2 * (2 + 2) + 1 * (2 * 4 + 2).
    graded = score_single(truth, probabilities, NAMES[:3], grades=(0, 1, 2)).metrics
    assert graded.pop("kappa_quadratic") == pytest.approx(1 - (2 / 6) / (48 / 36))
    assert graded == {name: value for name, value in found.items() if name != "kappa"}


def test_pairs_are_counted_by_true_and_predicted_class():
    counts = count_pairs(np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 5))
def test_kappa_is_that_of_scikit_learn_wherever_all_grades_are_named(seed, num_samples, num_grades):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, num_grades, (2, num_samples))
    expected = sk.cohen_kappa_score(truth, predicted, labels=np.arange(num_grades), weights="quadratic")
    found = quadratic_kappa(truth, predicted)
    assert found == pytest.approx(expected, abs=1e-12) if found is not None else np.isnan(expected)


def test_kappa_of_kinds_does_not_depend_on_the_order_of_their_names():
    truth, predicted = np.array([0, 0, 1, 2, 2, 3]), np.array([0, 1, 1, 2, 3, 0])
    expected = sk.cohen_kappa_score(truth, predicted)
    for order in permutations(range(4)):
        assert unweighted_kappa(np.array(order)[truth], np.array(order)[predicted]) == pytest.approx(expected)
    assert unweighted_kappa(np.array([2, 2]), np.array([2, 2])) is None


def test_kappa_weighs_the_distance_of_grades_even_where_one_between_them_is_missing():
    truth, probabilities = pair([0, 1, 2, 2, 0], [0, 2, 1, 2, 0], 3)
    graded = score_single(truth, probabilities, ("0", "1", "4"), grades=(0, 1, 4)).metrics["kappa_quadratic"]
    grades = np.array([0, 1, 4])
    expected = sk.cohen_kappa_score(
        grades[truth], grades[probabilities.argmax(1)], labels=np.arange(5), weights="quadratic"
    )
    assert graded == pytest.approx(expected)
    evenly = score_single(truth, probabilities, ("0", "1", "4"), grades=(0, 1, 2)).metrics["kappa_quadratic"]
    assert graded < evenly


def test_a_class_that_occurs_nowhere_is_left_out_of_the_means():
    truth, probabilities = pair([0, 0, 1, 1], [0, 1, 1, 1], 3)
    absent = score_single(truth, probabilities, NAMES[:3])
    without = score_single(*pair([0, 0, 1, 1], [0, 1, 1, 1], 2), NAMES[:2])
    for metric in ("accuracy", "precision", "recall", "f1", "auc", "kappa"):
        assert absent.metrics[metric] == pytest.approx(without.metrics[metric]), metric
    assert absent.remarks == (
        "class severe occurs in none of 4 samples and is never predicted: it is left out of all means but that of "
        "specificity",
    )


def test_a_class_that_is_predicted_but_occurs_nowhere_has_no_recall_and_scores_0_in_precision_and_f1():
    scores = score_single(*pair([0, 0, 1, 1], [0, 2, 1, 1], 3), NAMES[:3])
    assert scores.metrics["precision"] == pytest.approx((1 + 1 + 0) / 3)
    assert scores.metrics["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores.metrics["recall"] == pytest.approx((1 / 2 + 1) / 2)
    assert "recall/severe" not in scores.metrics
    assert scores.remarks == (
        "class severe occurs in none of 4 samples but is predicted in 1: its precision and F1 are 0, and it is left "
        "out of the means of recall and AUC",
    )


def test_a_class_that_is_never_predicted_has_a_precision_of_0():
    scores = score_single(*pair([0, 0, 1], [0, 0, 0], 2), NAMES[:2])
    assert (scores.metrics["precision/mild"], scores.metrics["precision"]) == (0.0, pytest.approx(1 / 3))
    assert "class mild occurs in 1 of 3 samples but is never predicted: its precision counts as 0" in scores.remarks


def test_a_truth_of_a_single_class_has_no_auc():
    scores = score_single(*pair([1, 1, 1], [1, 1, 0], 2), NAMES[:2])
    assert "auc" not in scores.metrics
    assert scores.metrics["recall"] == pytest.approx(2 / 3)
    assert scores.metrics["kappa"] == pytest.approx(0, abs=1e-12)
    assert scores.remarks == (
        "class normal occurs in none of 3 samples but is predicted in 1: its precision and F1 are 0, and it is left "
        "out of the means of recall and AUC",
        "class mild occurs in all of 3 samples: it is left out of the means of specificity and AUC",
        "no class has auc: it is left out",
    )


def test_one_sample_has_an_accuracy_but_neither_auc_nor_kappa():
    scores = score_single(*pair([1], [1], 2), NAMES[:2])
    assert scores.metrics["accuracy"] == scores.metrics["recall"] == 1
    assert {"auc", "kappa"} & set(scores.metrics) == set()
    assert (
        "class mild occurs in all of 1 sample: it is left out of the means of specificity and AUC" in scores.remarks
    )
    assert "class mild is the only one in truth and prediction: kappa is not defined" in scores.remarks


def test_ties_of_the_highest_probability_are_said_and_the_first_class_is_predicted():
    truth, probabilities = np.array([0, 1, 1]), np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
    scores = score_single(truth, probabilities, NAMES[:2])
    assert scores.metrics["accuracy"] == pytest.approx(2 / 3)
    assert scores.metrics["auc"] == pytest.approx((1 + 0.5) / 2)
    assert scores.remarks == (
        "2 samples of 3 with several classes of the same highest probability: the first of these is predicted",
    )


def test_a_network_that_tells_all_samples_the_same_is_said_to_have_an_auc_that_tells_nothing():
    scores = score_multi_label(np.array([[1, 0], [0, 1], [1, 1]], bool), np.full((3, 2), 0.6), NAMES[:2])
    assert scores.metrics["auc"] == 0.5
    assert scores.remarks == tuple(
        f"class {name} has the same probability in all of 3 samples: its AUC of 0.5 means nothing"
        for name in NAMES[:2]
    )


def test_saturated_probabilities_of_two_classes_are_ranked_by_the_second():
    small = np.array([1e-20, 1e-18, 1e-19, 1e-17])  # 1 - p is 1 in all four
    scores = score_single(np.array([0, 1, 0, 1]), np.stack([1 - small, small], axis=1), NAMES[:2])
    assert scores.metrics["auc"] == scores.metrics["auc/normal"] == scores.metrics["auc/mild"] == 1


def test_a_label_that_occurs_in_no_sample_is_left_out_and_said():
    truth = np.array([[1, 0], [0, 0], [1, 0]], bool)
    scores = score_multi_label(truth, np.array([[0.9, 0.1], [0.2, 0.1], [0.4, 0.6]]), NAMES[:2])
    assert scores.metrics["auc"] == scores.metrics["auc/normal"] == 1
    assert scores.metrics["recall"] == 0.5
    assert scores.metrics["accuracy"] == pytest.approx(2 / 3)
    assert scores.metrics["label_accuracy"] == pytest.approx(4 / 6)
    assert scores.remarks == (
        "class mild occurs in none of 3 samples but is predicted in 1: its precision and F1 are 0, and it is left "
        "out of the means of recall and AUC",
    )


def test_no_sample_at_all_is_refused():
    for empty in (
        lambda: score_single(np.zeros(0, int), np.zeros((0, 2)), NAMES[:2]),
        lambda: score_multi_label(np.zeros((0, 2), bool), np.zeros((0, 2)), NAMES[:2]),
    ):
        with pytest.raises(ValueError, match=r"0 samples, expected at least 1; check the split"):
            empty()


def test_probabilities_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match=r"1 sample of 2 with a probability that is not finite; .* lower .*lr"):
        score_single(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 1.0]]), NAMES[:2])
