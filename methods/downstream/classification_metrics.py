"""Metrics of classification, from the truth, the probabilities and the predicted classes of samples.

Each class is scored against the rest: precision, recall, specificity, F1 and AUC, as scikit-learn defines them, and
their means over the classes (macro; the mean recall is the balanced accuracy). With two classes that exclude each
other, the AUC is that of the second. Classes that exclude each other also have accuracy and Cohen's kappa: ``kappa``
of kinds, whose errors all count alike, and ``kappa_quadratic`` of grades, whose errors count by the square of their
distance. Classes that do not exclude each other have accuracy (a sample counts if all its classes are right) and
label accuracy (each class of each sample counts).

A metric of 0 / 0 is undefined: a class has no recall if it does not occur, no specificity if it always occurs, no
AUC if it always or never occurs, and no precision and no F1 if it neither occurs nor is predicted. An undefined value
is left out of the mean, and a metric that no class has is left out altogether. One convention is scikit-learn's: a
class that occurs but is never predicted has a precision of 0. Remarks name what is left out or counts by convention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

THRESHOLD = 0.5
BY_CLASS = ("precision", "recall", "specificity", "f1", "auc")


@dataclass(frozen=True)
class ClassScores:
    """Metrics by name, a class's own as ``recall/<class>``; and remarks on missing or conventional values."""

    metrics: dict[str, float]
    remarks: tuple[str, ...]


def score_single(
    truth: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n k"],
    names: Sequence[str],
    predicted: Int[np.ndarray, " n"] | None = None,
    grades: Sequence[int] | None = None,
) -> ClassScores:
    """Score samples of one class each, given as indices into ``names``.

    ``predicted`` is by default the most probable class. ``grades`` are the grades that the classes stand for; without
    them the classes are kinds, in no order. Raises ValueError where there is no sample, or a probability is not
    finite.
    """
    _check(probabilities, names)
    remarks = []
    chosen = probabilities.argmax(1) if predicted is None else predicted
    if predicted is None:
        ties = int(((probabilities == probabilities.max(1, keepdims=True)).sum(1) > 1).sum())
        if ties:
            remarks.append(
                f"{_samples(ties)} of {len(truth)} with several classes of the same highest probability: the first "
                "of these is predicted"
            )
    classes = np.arange(len(names))
    # Two columns sum to 1 up to rounding: scored separately, saturated probabilities would tie in one column only.
    ranks = probabilities if len(names) != 2 else probabilities[:, 1:] * [-1, 1]
    one_vs_rest = _score_classes(truth[:, None] == classes, chosen[:, None] == classes, ranks, names)
    metrics = {"accuracy": float((truth == chosen).mean())}
    if grades is None:
        name, kappa = "kappa", unweighted_kappa(truth, chosen)
    else:
        name, kappa = "kappa_quadratic", quadratic_kappa(np.array(grades)[truth], np.array(grades)[chosen])
    if kappa is None:
        remarks.append(f"class {names[truth[0]]} is the only one in truth and prediction: {name} is not defined")
    else:
        metrics[name] = kappa
    return ClassScores({**metrics, **one_vs_rest.metrics}, (*one_vs_rest.remarks, *remarks))


def score_multi_label(
    truth: Bool[np.ndarray, "n k"], probabilities: Float[np.ndarray, "n k"], names: Sequence[str]
) -> ClassScores:
    """Score samples of any number of classes each; a class is predicted where its probability is above one half.

    Raises ValueError where there is no sample, or a probability is not a finite number.
    """
    _check(probabilities, names)
    predicted = probabilities > THRESHOLD
    one_vs_rest = _score_classes(truth, predicted, probabilities, names)
    metrics = {
        "accuracy": float((truth == predicted).all(1).mean()),
        "label_accuracy": float((truth == predicted).mean()),
    }
    return ClassScores({**metrics, **one_vs_rest.metrics}, one_vs_rest.remarks)


def unweighted_kappa(truth: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"]) -> float | None:
    """Return Cohen's kappa of kinds, 1 - errors / errors by chance; None where a single kind occurs in both."""
    counts = count_pairs(truth, predicted, int(max(truth.max(), predicted.max())) + 1)
    by_chance = len(truth) ** 2 - int(counts.sum(0) @ counts.sum(1))
    return None if by_chance == 0 else float(1 - len(truth) * (truth != predicted).sum() / by_chance)


def quadratic_kappa(truth: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"]) -> float | None:
    """Return Cohen's kappa of grades with quadratic weights; None where all are one and the same grade.

    It is 1 - E[(t - p)**2] / E[(t - p')**2] with t and p' drawn independently, hence the variances below.
    scikit-learn weighs the positions of the grades that occur, so that a missing grade brings its neighbours closer
    together.
    """
    by_chance = truth.var() + predicted.var() + (truth.mean() - predicted.mean()) ** 2
    return None if by_chance == 0 else float(1 - ((truth - predicted) ** 2).mean() / by_chance)


def count_pairs(
    truth: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], num_classes: int
) -> Int[np.ndarray, "true predicted"]:
    """Count samples by (true class, predicted class): the confusion matrix."""
    pairs = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def _score_classes(
    truth: Bool[np.ndarray, "n k"],
    predicted: Bool[np.ndarray, "n k"],
    ranks: Float[np.ndarray, "n k"],
    names: Sequence[str],
) -> ClassScores:
    """Score each class against the rest, and take means."""
    scores: list[dict[str, float]] = []
    remarks: list[str] = []
    for name, *column in zip(names, truth.T, predicted.T, ranks.T, strict=True):
        scores.append(_score_one(*column))
        remarks += _remarks(f"class {name}", *column)
    metrics: dict[str, float] = {}
    for metric in BY_CLASS:
        found = {name: own[metric] for name, own in zip(names, scores, strict=True) if metric in own}
        if found:
            metrics[metric] = float(np.mean(list(found.values())))
            metrics |= {f"{metric}/{name}": value for name, value in found.items()}
        else:
            remarks.append(f"no class has {metric}: it is left out")
    return ClassScores(metrics, tuple(remarks))


def _score_one(
    truth: Bool[np.ndarray, " n"], predicted: Bool[np.ndarray, " n"], ranks: Float[np.ndarray, " n"]
) -> dict[str, float]:
    """Return the metrics that are defined for a class."""
    from sklearn.metrics import precision_recall_fscore_support, recall_score, roc_auc_score

    undefined: Any = np.nan  # scikit-learn's type annotations allow only strings
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, average="binary", zero_division=undefined
    )
    scores = {
        "precision": 0.0 if truth.any() and not predicted.any() else precision,
        "recall": recall,
        "specificity": recall_score(truth, predicted, pos_label=0, zero_division=undefined),
        "f1": f1,
        "auc": roc_auc_score(truth, ranks) if truth.any() and not truth.all() else np.nan,
    }
    return {name: float(value) for name, value in scores.items() if not np.isnan(value)}


def _remarks(
    subject: str, truth: Bool[np.ndarray, " n"], predicted: Bool[np.ndarray, " n"], ranks: Float[np.ndarray, " n"]
) -> list[str]:
    """List the metrics that a class lacks or that count by convention."""
    everyone, occurs, hits = _samples(len(truth)), int(truth.sum()), int(predicted.sum())
    remarks = []
    if occurs == hits == 0:
        remarks.append(
            f"{subject} occurs in none of {everyone} and is never predicted: it is left out of all means but that of "
            "specificity"
        )
    elif occurs == 0:
        remarks.append(
            f"{subject} occurs in none of {everyone} but is predicted in {hits}: its precision and F1 are 0, and it "
            "is left out of the means of recall and AUC"
        )
    elif hits == 0:
        remarks.append(
            f"{subject} occurs in {occurs} of {everyone} but is never predicted: its precision counts as 0"
        )
    if occurs == len(truth):
        remarks.append(f"{subject} occurs in all of {everyone}: it is left out of the means of specificity and AUC")
    elif occurs and ranks.min() == ranks.max():
        remarks.append(f"{subject} has the same probability in all of {everyone}: its AUC of 0.5 means nothing")
    return remarks


def _samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"


def _check(probabilities: Float[np.ndarray, "n k"], names: Sequence[str]) -> None:
    assert probabilities.shape[1] == len(names), "one name per class"
    if len(probabilities) == 0:
        raise ValueError(
            "classification scores: 0 samples, expected at least 1; check the split and the classes of the shards"
        )
    if bad := int((~np.isfinite(probabilities).all(1)).sum()):
        raise ValueError(
            f"classification scores: {_samples(bad)} of {len(probabilities)} with a probability that is not finite; "
            "the network has diverged: lower downstream.optimiser.lr or set its clip_norm"
        )
