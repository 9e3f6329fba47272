"""Label boxes: the connected components of a label map as boxes of findings.

Voxels of one value that touch, also by an edge or a corner, are one component. In the planes of a volume, each
component of a plane has a box of its own, which is one plane thick: what an annotator draws who sees one plane.
"""

from typing import Any

import numpy as np
from jaxtyping import Integer

from data.box_rule import LabelBoxes
from data.boxes import Boxes


def label_boxes(label: Integer[np.ndarray, "*S"], rule: LabelBoxes) -> Boxes:
    """Return the smallest box of each component, in order of the values; a box's class is its label's value.

    The label map has the axes (D, H, W), or (H, W), which is a plane by itself.
    """
    from scipy import ndimage

    corners: list[np.ndarray] = []
    classes: list[int] = []
    linked = np.ones((3,) * label.ndim, bool)
    if rule.within == "planes" and label.ndim == 3:
        linked[[0, 2]] = False  # nothing touches across planes
    for value in filter(rule.takes, np.unique(label[label > 0]).tolist()):
        labelled: Any = ndimage.label(label == value, linked)
        components: np.ndarray = labelled[0]
        sizes = np.bincount(components.ravel())[1:]
        for size, found in zip(sizes, ndimage.find_objects(components), strict=True):
            if size >= rule.min_voxels:
                corners.append(np.array([[part.start for part in found], [part.stop for part in found]]))
                classes.append(value)
    stacked = np.stack(corners) if corners else np.zeros((0, 2, label.ndim))
    return Boxes(stacked.astype(np.int64), np.array(classes, np.int64))
