"""Trivial: what a detector scores that says of every image what the training images have on average, to be beaten.

Boxes stand in the index of the shards: neither voxels nor a network are needed.
"""

import numpy as np
from jaxtyping import Int64

from data.shards.index import Selection, ShardSet
from data.shards.writer import boxes_of
from methods.downstream.detection import Detection, Located
from orchestrator.config.experiment import Experiment
from orchestrator.runs.labelled import LabelledSamples
from orchestrator.runs.network import outline_network

MEAN_BOX = "mean_box/"
METRICS = ("ap", "ap50", "mfroc")


def trivial_scores(experiment: Experiment, labelled: LabelledSamples, judged: Selection) -> dict[str, float]:
    """Return what the mean box of the training samples scores on others, as ``mean_box/...``.

    Nothing is returned for other tasks than detection, and where no training sample has a box.
    """
    task = outline_network(experiment, labelled)
    if not isinstance(task, Detection):
        return {}
    trained = _located(labelled.shards, labelled.train)
    if not any(len(own) for own, _ in trained):
        return {}
    names = labelled.shards.rows["sample_id"].take(judged.row_ids).to_pylist()
    located = dict(zip(names, _located(labelled.shards, judged), strict=True))
    metrics = task.mean_box_scores(trained, located).metrics
    return {f"{MEAN_BOX}{name}": metrics[name] for name in METRICS}


def _located(shards: ShardSet, selection: Selection) -> list[Located]:
    """Return the boxes and the size of each sample."""
    rows = shards.rows.select(["boxes", "box_classes"]).take(selection.row_ids).to_pylist()
    extents: Int64[np.ndarray, "n nd"] = selection.extents
    found: list[Located] = []
    for row, extent in zip(rows, extents, strict=True):
        own = boxes_of(row["boxes"], row["box_classes"], len(extent))
        assert own is not None, "samples with unknown boxes are not selected"
        found.append((own, extent))
    return found
