"""Case scores: what each patient adds to a metric of a fine-tuning, read from the file of its cases.

A patient's score is scaled such that the mean over patients is the metric itself: the Dice of a label is a mean over
cases, and so is accuracy. Of other metrics of classes, such as the AUC, and of detections, such as AP50, a patient's
score is its jackknife pseudo-value: what the metric would lose without the patient (of the AUC, DeLong et al.,
Biometrics 44, 1988).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from pyarrow import parquet as pq

from methods.downstream.classification_metrics import score_multi_label, score_single
from methods.downstream.detection_metrics import JudgedUnit, findings_of, rows_from, score_units
from methods.downstream.names import label_in_metrics
from orchestrator.direction import TEST

CaseScores = dict[str, float]
"""A score for each patient."""
Columns = dict[str, np.ndarray]

MOST_JACKKNIFED = 1000  # patients, beyond which leaving out each of them takes minutes
CLOSE = 1e-6
PROBABILITY, BOXES = "probability/", "boxes"


def case_scores(file: Path, metric: str, value: float) -> CaseScores | None:
    """Return the score of each patient behind a metric of a fine-tuning, whose value is ``value``.

    None where the file of its cases does not tell them: it is not there, it names no patients, or no mean of its
    columns is the value.
    """
    if not file.exists():
        return None
    table = pq.read_table(file)
    role = "test" if metric.startswith(TEST) else "validation"
    columns = {name: np.asarray(table[name].to_pandas()) for name in table.column_names}
    own = columns["split"] == role
    if "patient" not in columns or not own.any():
        return None
    cases = {name: column[own] for name, column in columns.items()}
    for scores in _candidates(cases, metric.removeprefix(TEST)):
        if abs(float(np.mean(list(scores.values()))) - value) < CLOSE:
            return scores
    return None


def _candidates(cases: Columns, metric: str) -> Iterator[CaseScores]:
    """Yield the patients' scores of what the metric may be: ``score`` has the value of one of the others."""
    if "label" in cases:
        yield from _of_labels(cases, metric)
    elif any(name == "true" or name.startswith("true/") for name in cases):
        yield from _of_classes(cases, metric)
    elif BOXES in cases:
        yield from _of_boxes(cases, metric)


def _of_labels(cases: Columns, metric: str) -> Iterator[CaseScores]:
    kind, _, label = metric.partition("/")
    labels = list(dict.fromkeys(cases["label"]))
    owners = cases["patient"][:: len(labels)]
    for column in ("dice", "iou"):
        if kind not in (column, f"{column}_mean", "score"):
            continue
        values = cases[column].astype(np.float64).reshape(-1, len(labels))
        if label:
            values = values[:, [label_in_metrics(name) == label for name in labels]]
        ways = [_by_labels(values), _by_cases(values)]
        if metric == "score":  # of a single label, if the convention says so
            ways += list(values.T)
        for scores in ways:
            yield _of_patients(scores, owners)


def _by_labels(values: Float[np.ndarray, "cases labels"]) -> Float[np.ndarray, " cases"]:
    """Return what each case adds to the mean over labels of a label's mean over the cases that have it."""
    present = ~np.isnan(values)
    counts = present.sum(0)
    shares = np.where(present, values, 0)[:, counts > 0] / counts[counts > 0]
    return shares.sum(1) * len(values) / max(1, (counts > 0).sum())


def _by_cases(values: Float[np.ndarray, "cases labels"]) -> Float[np.ndarray, " cases"]:
    """Return the mean of each case over the labels that it has; NaN where it has none."""
    present = ~np.isnan(values)
    return np.where(present, values, 0).sum(1) / np.where(present.any(1), present.sum(1), np.nan)


def _of_classes(cases: Columns, metric: str) -> Iterator[CaseScores]:
    classes = [name.removeprefix(PROBABILITY) for name in cases if name.startswith(PROBABILITY)]
    probabilities = np.stack([cases[f"{PROBABILITY}{name}"] for name in classes], axis=1)
    names = [label_in_metrics(name) for name in classes]
    if "true" in cases:
        truth, predicted = (np.array([classes.index(name) for name in cases[of]]) for of in ("true", "predicted"))
    else:
        truth, predicted = (np.stack([cases[f"{of}/{name}"] for name in classes], 1) for of in ("true", "predicted"))

    def scored(kept: Bool[np.ndarray, " cases"]) -> dict[str, float]:
        if truth.ndim == 1:
            return score_single(truth[kept], probabilities[kept], names, predicted[kept]).metrics
        return score_multi_label(truth[kept], probabilities[kept], names).metrics

    yield from _jackknifed(scored, cases["patient"], metric)


def _of_boxes(cases: Columns, metric: str) -> Iterator[CaseScores]:
    names = sorted({box["class"] for boxes in cases[BOXES] for box in boxes})
    units = [JudgedUnit.of(findings_of(rows_from(list(boxes), names), len(names))) for boxes in cases[BOXES]]

    def scored(kept: Bool[np.ndarray, " cases"]) -> dict[str, float]:
        left = [unit for unit, own in zip(units, kept, strict=True) if own]
        return score_units(left, names)[0] if any(one.num_true for unit in left for one in unit.finds) else {}

    yield from _jackknifed(scored, cases["patient"], metric)


def _jackknifed(
    scored: Callable[[Bool[np.ndarray, " cases"]], dict[str, float]], patients: np.ndarray, metric: str
) -> Iterator[CaseScores]:
    """Yield the patients' pseudo-values of a metric, or of each that ``score`` may be."""
    unique = list(dict.fromkeys(patients))
    if not 1 < len(unique) <= MOST_JACKKNIFED:
        return
    whole = scored(np.ones(len(patients), bool))
    without = [scored(patients != patient) for patient in unique]
    for name in [metric] if metric != "score" else whole:
        if name in whole and all(name in metrics for metrics in without):
            yield dict(zip(unique, pseudo_values(whole[name], [metrics[name] for metrics in without]), strict=True))


def pseudo_values(whole: float, without: Sequence[float]) -> list[float]:
    """Return the pseudo-value of each patient, from the metric without it; their mean is the metric."""
    lost = whole - np.array(without)
    return (whole + (len(lost) - 1) * (lost - lost.mean())).tolist()


def _of_patients(scores: Float[np.ndarray, " cases"], owners: np.ndarray) -> CaseScores:
    """Return each patient's share of a mean over cases, of which those without a score do not count."""
    counted = ~np.isnan(scores)
    unique, places = np.unique(owners[counted].astype(str), return_inverse=True)
    sums = np.bincount(places, scores[counted], len(unique)) * len(unique) / counted.sum()
    return dict(zip(unique.tolist(), sums.tolist(), strict=True))
