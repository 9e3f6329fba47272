"""Box pictures: boxes stand around their pixels, true ones solid, detections dashed with their scores."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from orchestrator.judging.box_pictures import DASHED, boxes_figure, draw_boxes
from orchestrator.judging.images import MORE_DETECTIONS, BoxedImage
from orchestrator.judging.panels import class_colours

NAMES = ("liver", "spleen", "node")


def boxed(num_detected: int = 1, **fields: object) -> BoxedImage:
    return BoxedImage(
        title="s-1",
        image=np.arange(60.0).reshape(1, 6, 10),
        true=np.array([[1.0, 2, 4, 7]]),
        true_classes=np.array([2]),
        detected=np.tile(np.array([[0.5, 2, 4, 6.5]]), (num_detected, 1)),
        detected_classes=np.zeros(num_detected, np.int64),
        scores=np.linspace(0.9, 0.1, num_detected),
        **fields,
    )


def test_true_boxes_are_solid_and_detections_dashed_in_the_colours_of_their_classes_with_scores() -> None:
    figure = boxes_figure([boxed()], NAMES)
    true, detected = figure.axes[0].patches
    colours = class_colours(4)[1:]
    # Pixel 2 spans 1.5 to 2.5.
    assert (*true.get_xy(), true.get_width(), true.get_height()) == (1.5, 0.5, 5, 3)
    assert (*detected.get_xy(), detected.get_width(), detected.get_height()) == (1.5, 0.0, 4.5, 3.5)
    assert [to_hex(patch.get_edgecolor()) for patch in (true, detected)] == [colours[2], colours[0]]
    assert true.get_linestyle() == "-"
    assert detected.get_linestyle() == DASHED
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.90"]
    assert figure.axes[0].get_title() == "s-1\ntrue: 1, detected: 1"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["liver", "node"]


def test_only_the_likeliest_detections_are_drawn_and_the_caption_says_so() -> None:
    axis = boxes_figure([boxed(num_detected=20)], NAMES).axes[0]
    assert len(axis.patches) == 1 + 1 + MORE_DETECTIONS
    assert axis.get_title() == "s-1\ntrue: 1, detected: 20, 4 drawn"


@pytest.mark.slow
def test_slices_are_drawn_as_all_others_are_and_pictures_become_pngs() -> None:
    axis = boxes_figure([boxed(spacing_mm=(2.0, 1.0))], NAMES).axes[0]
    assert axis.get_xlim() == (9.5, -0.5)
    assert axis.get_ylim() == (-0.5, 5.5)
    assert axis.get_aspect() == 2.0
    assert axis.texts[0].get_position() == (6.5, 4), "the box's upper left on the screen"
    assert boxes_figure([boxed(upright=True)], NAMES).axes[0].texts[0].get_position() == (2, 0.5)
    pictures = [boxed(upright=True), boxed(num_detected=0)] * 3
    image = Image.open(io.BytesIO(draw_boxes(pictures, NAMES)))
    assert (image.format, image.width > image.height) == ("PNG", True)
