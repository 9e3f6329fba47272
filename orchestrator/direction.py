"""Direction: whether higher or lower values of a metric are better, and which values are best.

The one place that knows: tables, sweeps, comparisons and links to MLflow ask here.
"""

from collections.abc import Sequence
from typing import Literal

Direction = Literal["max", "min"]

HIGHER = {
    "score", "dice", "dice_mean", "iou", "iou_mean", "kappa", "kappa_quadratic", "auc", "f1", "precision", "recall",
    "specificity", "effective_rank", "positive_cosine", "negative_distance", "samples_per_s", "shared_cluster",
    "prototypes_in_use", "smallest_cluster", "cluster_entropy", "ap", "ap50", "ap75", "mfroc", "sensitivity_at_0.5",
    "sensitivity_at_1", "sensitivity_at_2", "sensitivity_at_4",
}  # fmt: skip
LOWER = {
    "loss", "prediction", "regularisation", "cross_entropy", "collapse", "alignment", "uniformity",
    "positive_distance", "dead_positives", "data_wait_share", "code_entropy", "assignments_changed",
    "largest_cluster", "hours", "invariance", "variance", "covariance", "redundancy",
    "local_invariance", "local_variance", "local_covariance",
}  # fmt: skip
ENDINGS: dict[str, Direction] = {"_loss": "min", "_error": "min", "accuracy": "max", "kappa": "max"}
# loss_of_constant has none: it is what the loss is compared with, and depends on the targets alone.
# Prefixes of a metric's own name: where, or of what, it was measured.
PLACES = ("best", "test", "initial", "health", "probe", "mean", "mean_box")
BEST, TEST = "best/", "test/"
SYSTEM = "system"


def direction_of(metric: str) -> Direction | None:
    """Return whether higher or lower values are better; None for a metric such as the learning rate."""
    parts = metric.split("/")
    while len(parts) > 1 and parts[0] in PLACES:
        parts = parts[1:]
    name = parts[0].removeprefix("linear_").removeprefix("knn_")
    if name in HIGHER:
        return "max"
    if name in LOWER:
        return "min"
    return next((direction for ending, direction in ENDINGS.items() if name.endswith(ending)), None)


def is_detail(metric: str) -> bool:
    """Tell whether a metric is of a single label or class, as ``best/dice/liver`` is."""
    parts = metric.split("/")
    while len(parts) > 1 and parts[0] in (*PLACES, SYSTEM):
        parts = parts[1:]
    return len(parts) > 1


def best_first(values: Sequence[float | None], direction: Direction | None) -> list[int]:
    """Return the places of values from best to worst, missing values last; in the given order without a direction."""
    sign = {"max": -1, "min": 1, None: 0}[direction]
    return sorted(range(len(values)), key=lambda place: (values[place] is None, sign * (values[place] or 0.0)))


def best(values: Sequence[float | None], direction: Direction | None) -> int | None:
    """Return the place of the best value, the first of equals; None if there is nothing to choose."""
    if direction is None or sum(value is not None for value in values) < 2:
        return None
    return best_first(values, direction)[0]


def as_logged(metric: str) -> str:
    """Return the name under which MLflow has a score of a fine-tuning's best checkpoint."""
    return metric if metric.startswith(TEST) else f"{BEST}{metric}"


def words(direction: Direction) -> str:
    """Say whether higher or lower is better."""
    return "higher is better" if direction == "max" else "lower is better"
