"""Names of labels and classes in metrics."""

import re


def label_in_metrics(name: str) -> str:
    """Return a label's or a class's name as metrics have it: MLflow and file systems refuse some characters."""
    return re.sub(r"[^\w. -]", "_", name)
