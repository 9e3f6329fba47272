"""Box pictures: true boxes and detections, drawn over the images in which they lie."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from orchestrator.judging.images import BoxedImage
from orchestrator.judging.panels import (
    INK,
    as_png,
    class_colours,
    empty_panels,
    grey_window,
    show_caption,
    show_image,
)

BOX_COLUMNS = 4
DASHED = (0, (2, 2))


def draw_boxes(images: Sequence[BoxedImage], class_names: Sequence[str]) -> bytes:
    """Draw images with their boxes as a PNG (see ``boxes_figure``)."""
    return as_png(boxes_figure(images, class_names))


def boxes_figure(images: Sequence[BoxedImage], class_names: Sequence[str]) -> Figure:
    """Draw the images, with a legend of the classes that occur; the scores stand beside the detections."""
    columns = min(len(images), BOX_COLUMNS)
    figure, axes = empty_panels(-(-len(images) // columns), columns, legend=True)
    colours = class_colours(len(class_names) + 1)[1:]
    shown: set[int] = set()
    for item, axis in zip(images, axes.flat, strict=False):
        show_image(axis, item.image, grey_window(item.image), item.spacing_mm, item.upright)
        for box, kind in zip(item.true, item.true_classes.tolist(), strict=True):
            _outline_box(axis, box, colours[kind], solid=True)
        drawn = item.num_drawn
        kinds = item.detected_classes[:drawn].tolist()
        for box, kind, score in zip(item.detected[:drawn], kinds, item.scores[:drawn], strict=True):
            _outline_box(axis, box, colours[kind], solid=False)
            # At the box's upper left, as it is seen: rows and columns of a slice run up and to the left.
            place = (box[1], box[0]) if item.upright else (box[3], box[2])
            axis.text(*place, f"{score:.2f}", color=colours[kind], fontsize=6, va="bottom", clip_on=True)
        shown |= {*item.true_classes.tolist(), *kinds}
        left_out = f", {drawn} drawn" if drawn < len(item.scores) else ""
        show_caption(axis, f"{item.title}\ntrue: {len(item.true)}, detected: {len(item.scores)}{left_out}")
    handles = [Patch(facecolor=colours[kind], label=class_names[kind]) for kind in sorted(shown)]
    if handles:
        figure.legend(
            handles=handles, loc="outside right upper", frameon=False, labelcolor=INK, fontsize=8,
            title="true: solid\ndetected: dashed", title_fontproperties={"size": 8, "weight": "bold"},
        ).get_title().set_color(INK)  # fmt: skip
    return figure


def _outline_box(axis: Axes, box: Float[np.ndarray, "4"], colour: str, solid: bool) -> None:
    """Draw a box around its pixels, whose centres lie at whole numbers."""
    top, left, bottom, right = box.tolist()
    axis.add_patch(
        Rectangle(
            (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour,
            linewidth=1.4, linestyle="-" if solid else DASHED,
        )
    )  # fmt: skip
