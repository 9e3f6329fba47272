"""Galleries: which judged samples are pictured, and what the pictures show."""

import io

import numpy as np
import torch
from PIL import Image

from data.views.batch import Batch
from methods.downstream import TASKS
from orchestrator.judging.gallery import (
    GALLERIES,
    PICTURED_PER_CLASS,
    PICTURED_SAMPLES,
    BoxGallery,
    ClassGallery,
)
from tests.batches import eight_bit_batch

NAMES = ("normal", "mild", "severe")


def batch_of(ids: list[str], size: tuple[int, ...] = (6, 8)) -> Batch:
    voxels = torch.arange(len(ids) * 2 * int(np.prod(size))).reshape(len(ids), 2, *size)
    return eight_bit_batch(voxels, [tuple(s - 1 for s in size)] * len(ids), tuple(ids))


def offer(gallery: ClassGallery, batch: Batch, truths: list[tuple[int, ...]]) -> None:
    told = torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.7, 0.1]])
    for index, truth in enumerate(truths):
        gallery.offer(batch, index, torch.tensor([k in truth for k in range(3)]), told)


def test_the_labels_of_every_task_can_be_pictured() -> None:
    assert {task.needs for task in TASKS.values()} == set(GALLERIES)


def test_a_few_samples_of_each_class_are_kept_the_same_ones_in_any_order() -> None:
    ids = [f"s-{n:02d}" for n in range(20)]
    truths = [(n % 2,) if n < 18 else () for n in range(20)]
    forward, backward = ClassGallery(), ClassGallery()
    offer(forward, batch_of(ids), truths)
    offer(backward, batch_of(ids[::-1]), truths[::-1])
    for gallery in (forward, backward):
        assert {number: sorted(alike) for number, alike in gallery.kept.items()} == {
            0: ["s-00", "s-02", "s-04"],
            1: ["s-01", "s-03", "s-05"],
            -1: ["s-18", "s-19"],
        }


def test_what_is_kept_says_truth_prediction_and_probabilities_without_the_batch_s_padding() -> None:
    gallery, batch = ClassGallery(), batch_of(["s-1"])
    offer(gallery, batch, [(0, 2)])
    shown = gallery.kept[0]["s-1"]
    assert (shown.title, shown.truth, shown.predicted, shown.upright) == ("s-1", (0, 2), (1,), True)
    np.testing.assert_allclose(shown.probabilities, [0.2, 0.7, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(shown.image, batch.voxels[0, :, :5, :7])


def test_a_volume_is_shown_by_its_middle_axial_plane() -> None:
    gallery, batch = ClassGallery(), batch_of(["v-1"], (6, 7, 8))
    offer(gallery, batch, [(1,)])
    shown = gallery.kept[1]["v-1"]
    np.testing.assert_array_equal(shown.image, batch.voxels[0, :, 2, :6, :7])
    assert not shown.upright


def test_every_class_is_chosen_before_a_second_sample_of_any() -> None:
    num_classes = PICTURED_SAMPLES - 1
    gallery = ClassGallery()
    batch = batch_of([f"s-{n:02d}" for n in range(num_classes * PICTURED_PER_CLASS)])
    for index in range(len(batch)):
        true = torch.arange(num_classes) == index // PICTURED_PER_CLASS
        gallery.offer(batch, index, true, torch.stack([true.float(), true.float()]))
    assert [image.truth[0] for image in gallery.chosen()] == [*range(num_classes), 0]


def test_what_is_chosen_becomes_a_png() -> None:
    gallery = ClassGallery()
    assert gallery.draw(NAMES) is None
    offer(gallery, batch_of(["s-1", "s-2"]), [(0,), ()])
    png = gallery.draw(NAMES)
    assert png is not None
    assert Image.open(io.BytesIO(png)).format == "PNG"


def rows(*boxes: tuple[int, float, float]) -> torch.Tensor:
    """Rows of plane, kind, class, score and box: of each, its plane, its class and its score; 1 is a true box."""
    made = [
        [plane, float(score == 1), kind, score, 1 + place, 2, 4 + place, 5]
        for place, (plane, kind, score) in enumerate(boxes)
    ]
    return torch.tensor(made, dtype=torch.float64).reshape(-1, 8)


def test_a_volume_is_shown_by_the_plane_with_the_most_true_boxes_and_the_likeliest_detections_come_first() -> None:
    gallery, batch = BoxGallery(), batch_of(["v-1"], (6, 7, 8))
    true = rows((3, 1, 1), (4, 2, 1), (4, 0, 1))
    gallery.offer(batch, 0, true, rows((3, 0, 0.9), (4, 1, 0.2), (4, 2, 0.8)))
    shown = gallery.kept[0]["v-1"]
    np.testing.assert_array_equal(shown.image, batch.voxels[0, :, 4, :6, :7])
    assert (shown.title, shown.upright) == ("v-1, slice 4", False)
    assert shown.true_classes.tolist() == [2, 0]
    assert shown.true.tolist() == [[2, 2, 5, 5], [3, 2, 6, 5]]
    assert (shown.scores.tolist(), shown.detected_classes.tolist()) == ([0.8, 0.2], [2, 1])
    assert shown.detected.tolist() == [[3, 2, 6, 5], [2, 2, 5, 5]]


def test_of_planes_with_as_many_true_boxes_the_one_with_the_largest_is_shown() -> None:
    gallery, batch = BoxGallery(), batch_of(["v-1"], (6, 7, 8))
    true = rows((2, 1, 1), (3, 1, 1), (5, 1, 1))
    true[1, 6:] += 1
    gallery.offer(batch, 0, true, rows())
    assert gallery.kept[1]["v-1"].title == "v-1, slice 3"


def test_samples_without_true_boxes_are_shown_with_their_false_positives_or_alone() -> None:
    gallery, batch = BoxGallery(), batch_of(["v-1", "v-2"], (6, 7, 8))
    gallery.offer(batch, 0, rows(), rows((1, 0, 0.9)))
    gallery.offer(batch, 1, rows(), rows())
    assert [gallery.kept[-1][name].title for name in ("v-1", "v-2")] == ["v-1, slice 1", "v-2, slice 2"]
    assert [len(gallery.kept[-1][name].scores) for name in ("v-1", "v-2")] == [1, 0]
    assert BoxGallery().draw(NAMES) is None
    png = gallery.draw(NAMES)
    assert png is not None
    assert Image.open(io.BytesIO(png)).format == "PNG"


def test_the_same_few_boxed_pictures_of_each_class_are_kept_in_any_order() -> None:
    ids = [f"s-{n:02d}" for n in range(10)]
    for order in (ids, ids[::-1]):
        gallery, batch = BoxGallery(), batch_of(order)
        for index, name in enumerate(order):
            gallery.offer(batch, index, rows((0, int(name[2:]) % 2, 1)), rows())
        assert {kind: sorted(alike) for kind, alike in gallery.kept.items()} == {
            0: ["s-00", "s-02", "s-04"],
            1: ["s-01", "s-03", "s-05"],
        }
