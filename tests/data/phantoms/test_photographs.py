"""Photograph phantoms: boxes touch their objects, colours say nothing of the class, and the files agree."""

import json

import numpy as np
import pytest
from PIL import Image

from data.phantoms.photographs import INSTANCES, OBJECTS, SIZE, make_photograph, write_photographs


@pytest.mark.slow
def test_every_class_and_every_number_of_objects_occurs():
    pictures = [make_photograph(0, patient) for patient in range(200)]
    assert np.bincount([picture.label for picture in pictures], minlength=len(OBJECTS)).min() > 20
    assert {len(picture.boxes) for picture in pictures} == {1, 2, 3, 4}


@pytest.mark.slow
def test_the_class_is_the_largest_object_s_and_boxes_lie_inside_and_apart():
    for patient in range(50):
        picture = make_photograph(1, patient)
        corners = picture.boxes.corners
        sides = corners[:, 1] - corners[:, 0]
        assert picture.label == picture.boxes.classes[sides.prod(axis=1).argmax()]
        assert corners.min() >= 0
        assert corners.max() <= SIZE
        assert sides.min() >= 8
        covered = np.zeros((SIZE, SIZE), int)
        for (top, left), (bottom, right) in corners:
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1


@pytest.mark.slow
def test_an_object_stands_out_from_what_is_around_its_box_in_some_colour():
    for patient in range(50):
        picture = make_photograph(2, patient)
        for (top, left), (bottom, right) in picture.boxes.corners:
            inside = picture.pixels[top:bottom, left:right].astype(float)
            around = picture.pixels[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2].astype(float)
            edges = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]])
            assert np.abs(np.median(inside, axis=(0, 1)) - np.median(edges, axis=0)).max() > 10 or (
                inside.std(axis=(0, 1)).max() > 15
            )


@pytest.mark.slow
def test_the_mean_colour_does_not_tell_the_class():
    pictures = [make_photograph(3, patient) for patient in range(300)]
    means = np.stack([picture.pixels.mean(axis=(0, 1)) for picture in pictures])
    labels = np.array([picture.label for picture in pictures])
    between = np.var([means[labels == label].mean(axis=0) for label in range(len(OBJECTS))], axis=0)
    assert (between < 5 * means.var(axis=0) / 60).all()


def test_table_and_instances_describe_the_files_and_only_those_with_labels(tmp_path):
    root = write_photographs(tmp_path / "a", num_patients=3, num_unlabelled=1, seed=4)
    instances = json.loads((root / INSTANCES).read_text())
    assert [image["file_name"] for image in instances["images"]] == [f"phantom_{k:03d}.png" for k in range(3)]
    assert (root / "labels.csv").read_text().splitlines()[4].startswith("phantom_003.png,,")
    for patient in range(3):
        picture = make_photograph(4, patient)
        np.testing.assert_array_equal(np.array(Image.open(root / f"phantom_{patient:03d}.png")), picture.pixels)
        own = [one for one in instances["annotations"] if one["image_id"] == patient]
        assert [one["category_id"] - 1 for one in own] == picture.boxes.classes.tolist()
        for one, ((top, left), (bottom, right)) in zip(own, picture.boxes.corners.tolist(), strict=True):
            assert one["bbox"] == [left, top, right - left, bottom - top]
    again = write_photographs(tmp_path / "b", num_patients=3, num_unlabelled=1, seed=4)
    for file in root.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
