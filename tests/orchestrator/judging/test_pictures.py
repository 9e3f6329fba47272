"""Pictures: boxes stand where the views were cut, masks over their slices, and no identifier is drawn."""

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from data.boxes import Boxes
from data.views.batch import Batch
from methods.base import Views
from orchestrator.judging.images import JudgedImage, MaskedSlice
from orchestrator.judging.panels import INK, class_colours
from orchestrator.judging.pictures import (
    RIGHT,
    VIEW_COLOURS,
    WRONG,
    confusions_figure,
    draw_confusions,
    draw_judged,
    draw_masks,
    draw_views,
    judged_figure,
    masks_figure,
    views_figure,
)

NAMES = ("background", "liver", "spleen", "aorta")


def batch_of(size: tuple[int, ...], slices: bool = False, padding: int = 3, channels: int = 1) -> Batch:
    """Two samples that count their voxels, padded at the far end of every axis."""
    padded = tuple(s + padding for s in size)
    voxels = (
        torch.arange(int(np.prod(padded)), dtype=torch.int32)
        .reshape(1, 1, *padded)
        .repeat(2, channels, *[1] * len(size))
    )
    return Batch(
        voxels=voxels,
        extents=np.tile(np.array(size), (2, 1)),
        scale=torch.full((2,), 0.01),
        offset=torch.zeros(2),
        spacing_mm=np.tile(np.array([2.5, 1.0, 1.0][-len(size) :], dtype=np.float32), (2, 1)),
        sample_ids=("s-1", "s-2"),
        volumes=("v-1", "v-1") if slices else ("s-1", "s-2"),
        numbers=np.arange(2),
        rows=np.arange(2),
        epochs=np.zeros(2, dtype=np.int64),
    )


def views_of(batch: Batch, lows: list[list[int]], size: list[int]) -> Views:
    boxes = tuple(np.tile(np.stack([np.array(low), np.array(low) + size]), (2, 1, 1)) for low in lows)
    channels = batch.voxels.shape[1]
    return Views(images=tuple(torch.zeros(2, channels, *size) for _ in lows), boxes=boxes)


def rectangles(figure: Figure, panel: int) -> list[tuple[float, float, float, float, str]]:
    """Return (left, bottom, width, height, colour) of the boxes drawn in a panel."""
    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height(), to_hex(patch.get_edgecolor()))
        for patch in figure.axes[panel].patches
    ]


def test_boxes_of_a_2d_pair_stand_where_the_views_were_cut() -> None:
    batch = batch_of((20, 30))
    figure = views_figure(batch, views_of(batch, [[2, 5], [8, 11]], [6, 9]))
    assert rectangles(figure, 0) == [
        (4.5, 1.5, 9.0, 6.0, VIEW_COLOURS[0]),
        (10.5, 7.5, 9.0, 6.0, VIEW_COLOURS[1]),
    ]
    assert figure.axes[0].get_title() == "stored, 20 x 30, IoU 0.00"
    assert figure.axes[0].images[0].get_array().shape == (20, 30)


def findings(*corners: list[list[int]]) -> Boxes:
    return Boxes(np.array(corners, dtype=np.int64), np.arange(len(corners)))


def test_true_boxes_lie_over_the_sample_and_where_the_view_has_them() -> None:
    batch = batch_of((20, 30))
    batch = replace(batch, boxes=(findings([[2, 5], [6, 9]], [[10, 11], [14, 20]]), None))
    # The first box is at another place in the view, the second one was moved away; -1 is padding.
    targets = {"boxes": torch.tensor([[[1.0, 2, 5, 6], [0, 0, 0, 0]]] * 2)}
    targets["classes"] = torch.tensor([[0, -1], [-1, -1]])
    views = replace(views_of(batch, [[0, 0]], [20, 30]), targets=targets)
    figure = views_figure(batch, views)
    assert rectangles(figure, 0)[1:] == [(4.5, 1.5, 4.0, 4.0, INK), (10.5, 9.5, 9.0, 4.0, INK)]
    assert rectangles(figure, 1) == [(1.5, 0.5, 4.0, 4.0, INK)]
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["stored, 20 x 30, boxes: 2", "view 1, 20 x 30, boxes: 1"]
    assert titles[2:] == ["stored, 20 x 30", "view 1, 20 x 30, boxes: 0"]
    assert len(rectangles(figure, 2)) == 1, "what is unknown is not drawn"


def test_true_boxes_of_a_volume_are_drawn_in_the_planes_that_they_cut() -> None:
    batch = batch_of((10, 20, 30))
    own = findings([[4, 2, 3], [5, 8, 25]], [[1, 2, 3], [2, 6, 9]])
    figure = views_figure(replace(batch, boxes=(own, own)), views_of(batch, [[2, 0, 0]], [5, 20, 30]))
    axial, coronal, sagittal = (rectangles(figure, panel)[1:] for panel in range(3))
    assert axial == [(2.5, 1.5, 22.0, 6.0, INK)], "the middle is plane 4, row 10, column 15"
    assert coronal == []
    assert sagittal == [(1.5, 3.5, 6.0, 1.0, INK)]
    assert figure.axes[0].get_title() == "stored, 10 x 20 x 30, boxes: 2"


def test_boxes_of_a_3d_pair_are_projected_onto_three_planes() -> None:
    batch = batch_of((10, 20, 30))
    figure = views_figure(batch, views_of(batch, [[1, 2, 3], [5, 6, 7]], [4, 8, 8]))
    axial, coronal, sagittal = (rectangles(figure, panel)[0] for panel in range(3))
    assert axial == (2.5, 1.5, 8, 8, VIEW_COLOURS[0])
    assert coronal == (2.5, 0.5, 8, 4, VIEW_COLOURS[0])
    assert sagittal == (1.5, 0.5, 8, 4, VIEW_COLOURS[0])
    assert [figure.axes[panel].images[0].get_array().shape for panel in range(3)] == [(20, 30), (10, 30), (10, 20)]


def test_a_box_that_the_plane_misses_is_dashed() -> None:
    batch = batch_of((30, 20, 30))
    figure = views_figure(batch, views_of(batch, [[0, 2, 3], [20, 2, 3]], [8, 8, 8]))
    assert [patch.get_linestyle() for patch in figure.axes[0].patches] != ["-", "-"]
    assert [patch.get_linestyle() for patch in figure.axes[1].patches] == ["-", "-"]


def test_slices_are_drawn_with_the_patient_s_right_on_the_left_and_anterior_up() -> None:
    left, right = views_figure(b := batch_of((20, 30), slices=True), views_of(b, [[0, 0]], [8, 8])).axes[0].get_xlim()
    bottom, top = views_figure(b, views_of(b, [[0, 0]], [8, 8])).axes[0].get_ylim()
    assert (left, right) == (29.5, -0.5)
    assert (bottom, top) == (-0.5, 19.5)


def test_an_image_that_is_no_slice_is_drawn_as_it_is_stored() -> None:
    axis = views_figure(b := batch_of((20, 30)), views_of(b, [[0, 0]], [8, 8])).axes[0]
    assert axis.get_xlim() == (-0.5, 29.5)
    assert axis.get_ylim() == (19.5, -0.5)


def test_anisotropic_planes_are_drawn_to_scale() -> None:
    figure = views_figure(b := batch_of((10, 20, 30)), views_of(b, [[0, 0, 0]], [4, 8, 8]))
    assert [figure.axes[panel].get_aspect() for panel in range(3)] == [1.0, 2.5, 2.5]


def test_colour_images_keep_their_three_channels() -> None:
    figure = views_figure(b := batch_of((20, 30), channels=3), views_of(b, [[0, 0]], [8, 8]))
    assert figure.axes[0].images[0].get_array().shape == (20, 30, 3)


def masked_slice(seed: int) -> MaskedSlice:
    truth = np.zeros((12, 16), dtype=np.int64)
    truth[3:8, 4:9] = 1
    prediction = np.where(np.roll(truth, 1, axis=1) == 1, 3, 0)
    return MaskedSlice(
        f"v-{seed}, slice 4", np.random.default_rng(seed).random((12, 16)), truth, prediction, (2.0, 1.0)
    )


def test_masks_lie_over_their_slice_and_the_legend_names_what_occurs() -> None:
    figure = masks_figure([masked_slice(1), masked_slice(2)], NAMES)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["liver", "aorta"]
    for first, second in pairwise(figure.axes[:3]):
        assert first.get_xlim() == second.get_xlim()
    truth, prediction = figure.axes[1].images[1], figure.axes[2].images[1]
    np.testing.assert_array_equal(truth.get_array(), masked_slice(1).truth)
    np.testing.assert_array_equal(prediction.get_array(), masked_slice(1).prediction)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["v-1, slice 4", "truth", "prediction"]


def test_background_is_transparent_and_a_class_keeps_its_colour_when_classes_are_added() -> None:
    assert class_colours(4)[0] == "#00000000"
    assert class_colours(80)[:30] == class_colours(30)
    assert len(set(class_colours(62))) == 62


@pytest.mark.parametrize("size", [(20, 30), (10, 20, 30)])
def test_views_become_a_png(size: tuple[int, ...]) -> None:
    batch = batch_of(size)
    image = Image.open(io.BytesIO(draw_views(batch, views_of(batch, [[1] * len(size)], [8] * len(size)))))
    assert (image.format, image.width > image.height / 2) == ("PNG", True)


def test_masks_become_a_png_with_what_was_drawn() -> None:
    masks = Image.open(io.BytesIO(draw_masks([masked_slice(1)], NAMES))).convert("RGB")
    assert masks.getbbox() == (0, 0, *masks.size)


def test_a_picture_without_any_label_has_no_legend() -> None:
    empty = np.zeros((4, 4), dtype=np.int64)
    assert masks_figure([MaskedSlice("v", np.ones((4, 4)), empty, empty)], NAMES).legends == []


def judged(truth: tuple[int, ...], predicted: tuple[int, ...], title: str = "s-1", channels: int = 1) -> JudgedImage:
    image = np.random.default_rng(0).random((channels, 12, 16))
    return JudgedImage(title, image, truth, predicted, np.array([0.1, 0.25, 0.05, 0.6]))


def test_judged_images_are_captioned_with_truth_and_prediction_and_framed_by_whether_they_agree() -> None:
    items = [judged((3,), (3,)), judged((1,), (3,), "s-2", channels=3), judged((1, 3), (3,), "s-3"), judged((), ())]
    figure = judged_figure([*items, judged((), (), "s-5")], NAMES)
    captions = [axis.get_title() for axis in figure.axes]
    assert captions[0] == "s-1\ntruth: aorta\nprediction: aorta 0.60"
    assert captions[2] == "s-3\ntruth: liver, aorta\nprediction: aorta 0.60"
    assert captions[3] == "s-1\ntruth: none\nprediction: none, aorta 0.60"
    assert captions[4:] == ["s-5\ntruth: none\nprediction: none, aorta 0.60", "", "", ""]
    frames = [to_hex(axis.spines["left"].get_edgecolor()) for axis in figure.axes[:5]]
    assert frames == [RIGHT, WRONG, WRONG, RIGHT, RIGHT]
    assert figure.axes[1].images[0].get_array().shape == (12, 16, 3)


def test_a_confusion_matrix_holds_counts_shaded_by_their_share_of_the_true_class() -> None:
    counts = np.array([[6, 2, 0, 0], [0, 1000, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    (axis,) = confusions_figure(counts, NAMES).axes
    np.testing.assert_allclose(axis.images[0].get_array()[0], [0.75, 0.25, 0, 0])
    np.testing.assert_allclose(axis.images[0].get_array()[2], 0)
    assert [text.get_text() for text in axis.texts[:6]] == ["6", "2", "0", "0", "0", "1,000"]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(NAMES)
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("truth", "prediction")


def test_judged_images_and_confusions_become_pngs() -> None:
    for png in (draw_judged([judged((3,), (3,))], NAMES), draw_confusions(np.eye(4, dtype=np.int64), NAMES)):
        assert Image.open(io.BytesIO(png)).format == "PNG"
